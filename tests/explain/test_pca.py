import numpy as np
import pytest
from sklearn.decomposition import PCA

from anlage.explain.pca import fit_patch_pca


@pytest.fixture
def tokens(generator):
    return (generator.normal(size=(300, 8)) * [5, 3, 2, 1, 1, 1, 0.5, 0.1] + 4).astype(np.float32)


def test_directions_are_scikit_learns_with_a_fixed_sign(tokens) -> None:
    mapping, expected = fit_patch_pca(tokens), PCA(3).fit(tokens.astype(np.float64))
    np.testing.assert_allclose(
        np.abs((mapping.component_KD * expected.components_).sum(1)), 1, atol=1e-6
    )
    np.testing.assert_allclose(mapping.explained_K, expected.explained_variance_ratio_, rtol=1e-5)
    largest = np.abs(mapping.component_KD).argmax(1)
    assert (mapping.component_KD[range(3), largest] > 0).all()


def test_colours_are_the_projections_between_percentiles(tokens) -> None:
    mapping = fit_patch_pca(tokens)
    colours = mapping.rgb(tokens)
    projected = (tokens - mapping.mean_D) @ mapping.component_KD.T
    low, high = np.percentile(projected, [1, 99], axis=0)
    expected = ((projected - low) / (high - low)).clip(0, 1) * 255
    assert np.abs(colours - expected).max() <= 0.51
    assert colours.dtype == np.uint8
    assert colours.min() == 0
    assert colours.max() == 255


def test_order_and_parting_of_tokens_do_not_matter(tokens) -> None:
    whole, parted = (
        fit_patch_pca(tokens),
        fit_patch_pca([tokens[200:], tokens[:90], tokens[90:200]]),
    )
    assert np.abs(whole.rgb(tokens).astype(int) - parted.rgb(tokens)).max() <= 1


def test_flipping_tokens_does_not_flip_what_the_sign_rule_fixes(tokens) -> None:
    mapping, mirrored = fit_patch_pca(tokens), fit_patch_pca(-tokens)
    np.testing.assert_allclose(mapping.component_KD, mirrored.component_KD, atol=1e-6)


def test_one_outlier_does_not_grey_out_the_rest(tokens) -> None:
    calm = fit_patch_pca(tokens).rgb(tokens).std()
    tokens[0, 0] = 500
    assert fit_patch_pca(tokens).rgb(tokens[1:]).std() > 0.6 * calm


def test_missing_directions_are_grey(generator) -> None:
    line = np.outer(generator.normal(size=50), [3.0, 0, 1, 0])
    mapping = fit_patch_pca(line)
    colours = mapping.rgb(line)
    assert (colours[:, 1:] == 128).all()
    assert colours[:, 0].std() > 30
    same, narrow = np.full((9, 5), 2.5), generator.normal(size=(20, 2))
    assert (fit_patch_pca(same).rgb(same) == 128).all()
    assert (fit_patch_pca(narrow).rgb(narrow)[:, 2] == 128).all()
    assert mapping.explained_K == pytest.approx([1, 0, 0])


def test_grids_keep_their_shape(tokens) -> None:
    assert fit_patch_pca(tokens).rgb(tokens.reshape(10, 30, 8)).shape == (10, 30, 3)


@pytest.mark.parametrize(
    ("tokens", "match"),
    [
        (np.zeros((1, 4)), "two tokens or more"),
        (np.zeros((2, 3, 4)), "two tokens or more in"),
        ([np.zeros((4, 3)), np.zeros((4, 2))], "of one width"),
        ([], "two tokens or more"),
        (np.array([[1.0, np.nan], [0, 0]]), "finite tokens"),
    ],
)
def test_refuses(tokens, match) -> None:
    with pytest.raises(ValueError, match=match):
        fit_patch_pca(tokens)


def test_refuses_another_width(tokens) -> None:
    with pytest.raises(ValueError, match="tokens of width 8; got shape"):
        fit_patch_pca(tokens).rgb(tokens[:, :5])
