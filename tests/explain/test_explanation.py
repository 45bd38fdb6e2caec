"""One field at several sizes: the maps are those of the image given at that size."""

import numpy as np
import pytest
import torch
from weighty_encoder import weighty_encoder

from anlage.explain.attention import attention_maps
from anlage.explain.explanation import UNI_PX, explain_field
from anlage.explain.field import Field
from anlage.explain.rollout import attention_rollout


def field(edge: int = 64) -> Field:
    pixels = np.random.default_rng(0).integers(0, 256, (edge, edge, 3), dtype=np.uint8)
    return Field(name="x", pixels=pixels, mpp=0.5, is_stated=True)


def as_given(one: Field, px: int) -> torch.Tensor:
    """The image the transformer is given, by hand: MEAN and STD of the small encoder."""
    scaled = one.at_size(px).astype(np.float32) / 255
    normal = (scaled - np.float32([0.7, 0.5, 0.6])) / np.float32([0.2, 0.25, 0.3])
    return torch.from_numpy(normal.transpose(2, 0, 1)[None].copy())


def test_maps_of_each_size() -> None:
    encoder, one = weighty_encoder(), field()
    found = explain_field(encoder, one, px=[64, 32, 96])
    assert [(look.px, look.is_enlarged) for look in found.looks] == [
        (32, False),
        (64, False),
        (96, True),
    ]
    assert [look.mpp for look in found.looks] == [1.0, 0.5, pytest.approx(1 / 3)]
    assert found.patch_px == 8
    assert len(found.explained) == 3
    for look in found.looks:
        n, image = look.px // 8, as_given(one, look.px)
        assert look.attention.shape == (3, n, n)
        wanted = attention_maps(encoder.model, image)[0].numpy()
        np.testing.assert_allclose(look.attention, wanted, atol=1e-6)
        wanted = attention_rollout(encoder.model, image)[0].numpy()
        np.testing.assert_allclose(look.rollout, wanted, atol=1e-6)
        assert look.patch_rgb.shape == (n, n, 3)


def test_colours_of_patches_mean_the_same_at_all_sizes() -> None:
    """The mapping is fitted on the tokens of all sizes at once."""
    from anlage.explain.pca import fit_patch_pca

    encoder, one = weighty_encoder(), field()
    found = explain_field(encoder, one, px=[32, 64], kinds=["pca"])
    tokens = [
        encoder.patch_tokens(torch.from_numpy(one.at_size(px)).permute(2, 0, 1)[None])[0].numpy()
        for px in (32, 64)
    ]
    mapping = fit_patch_pca(tokens)
    for look, part in zip(found.looks, tokens, strict=True):
        difference = look.patch_rgb.reshape(-1, 3).astype(int) - mapping.rgb(part).astype(int)
        assert np.abs(difference).max() <= 1  # of 255: tokens differ in their last bits


def test_only_what_was_asked_for() -> None:
    (look,) = explain_field(weighty_encoder(), field(), px=[32], kinds=["attention"]).looks
    assert look.attention is not None
    assert look.rollout is None
    assert look.patch_rgb is None


def test_sizes_of_unis_figure_suit_the_patches_of_published_encoders() -> None:
    assert all(px % patch == 0 for px in UNI_PX for patch in (8, 14, 16))


@pytest.mark.parametrize(
    ("px", "kinds", "says"),
    [
        ([32, 60], ["pca"], "multiples of the encoder's 8 px patch; got 60. Ask for 64"),
        ([4], ["pca"], "got 4. Ask for 8"),
        ([], ["pca"], "got none"),
        ([32], ["heads"], "needs some of attention, rollout, pca; got 'heads'"),
        ([32], [], "got 'none'"),
    ],
)
def test_what_cannot_be_made_is_refused(px, kinds, says) -> None:
    with pytest.raises(ValueError, match=says):
        explain_field(weighty_encoder(), field(), px=px, kinds=kinds)
