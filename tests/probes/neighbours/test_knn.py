import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from anlage.probes.neighbours.knn import knn_probe, knn_probes


def test_probe_is_scikit_learns_where_no_vote_is_tied(generator) -> None:
    train, test = (generator.normal(2, 1, size=(200, 6)), generator.normal(2, 1, size=(60, 6)))
    label = (train[:, 0] > 2).astype(int)  # two classes and odd k: never a tie
    unit_train = train - train.mean(0)
    unit_test = test - train.mean(0)
    unit_train /= np.linalg.norm(unit_train, axis=1, keepdims=True)
    unit_test /= np.linalg.norm(unit_test, axis=1, keepdims=True)
    expected = KNeighborsClassifier(7).fit(unit_train, label)
    prediction = knn_probe(train, label, test, k=7)
    np.testing.assert_array_equal(prediction.label_N, expected.predict(unit_test))
    np.testing.assert_allclose(prediction.score_NC, expected.predict_proba(unit_test), atol=1e-7)


def dino_votes(train, code, test, *, k, n_classes):
    """DINO's eval_knn in plain numpy: unit rows, votes of exp(similarity / 0.07)."""
    train, test = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (train, test))
    result = np.zeros((len(test), n_classes))
    for i, row in enumerate(test @ train.T):
        for j in np.argsort(-row, kind="stable")[:k]:
            result[i, code[j]] += np.exp(row[j] / 0.07)
    return result / result.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("k", [1, 20])
def test_softmax_votes_without_centring_are_dinos(generator, k) -> None:
    train, test = (generator.normal(1, 1, size=(90, 6)), generator.normal(1, 1, size=(30, 6)))
    code = generator.integers(0, 4, 90)
    prediction = knn_probe(train, code, test, k=k, centre=False, vote="softmax")
    expected = dino_votes(train, code, test, k=k, n_classes=4)
    np.testing.assert_allclose(prediction.score_NC, expected, rtol=1e-4, atol=1e-8)
    np.testing.assert_array_equal(prediction.label_N, expected.argmax(axis=1))


def test_a_small_temperature_trusts_the_nearest(generator) -> None:
    train, code = generator.normal(size=(60, 4)), generator.integers(0, 3, 60)
    sharp = knn_probe(train, code, train, k=30, vote="softmax", temperature=1e-4)
    np.testing.assert_array_equal(sharp.label_N, code)  # each row is its own nearest
    assert np.isfinite(sharp.score_NC).all()


def test_several_k_are_each_alone(generator) -> None:
    train, test = generator.normal(size=(80, 5)), generator.normal(size=(20, 5))
    code = generator.integers(0, 3, 80)
    for vote in ("majority", "softmax"):
        together = knn_probes(train, code, test, ks=(20, 1, 5), vote=vote)
        assert sorted(together) == [1, 5, 20]
        for k, prediction in together.items():
            alone = knn_probe(train, code, test, k=k, vote=vote)
            np.testing.assert_array_equal(prediction.label_N, alone.label_N)
            np.testing.assert_array_equal(prediction.score_NC, alone.score_NC)


def test_standardising_is_done_by_hand(generator) -> None:
    train = generator.normal(size=(70, 4)) * [1, 100, 1, 1] + [5, 0, 0.1, 0]
    train[:, 2] = 0.1
    test, code = (train[:20] + generator.normal(size=(20, 4)), generator.integers(0, 2, 70))
    deviation = np.array([1 if i == 2 else train[:, i].std() for i in range(4)])
    scaled = [(side - train.mean(axis=0)) / deviation for side in (train, test)]
    ours = knn_probe(train, code, test, k=7, standardise=True)
    theirs = knn_probe(scaled[0], code, scaled[1], k=7, centre=False)
    np.testing.assert_array_equal(ours.label_N, theirs.label_N)
    assert (ours.label_N != knn_probe(train, code, test, k=7).label_N).any()


def test_nobody_votes_for_their_own_row_or_patient(generator) -> None:
    """Labels are a patient's own: leaving the patient out leaves chance."""
    patient = np.repeat(np.arange(12), 10)
    train = generator.normal(size=(12, 16))[patient] + 0.1 * generator.normal(size=(120, 16))
    label = np.array(["a", "b"] * 6)[patient]
    own = knn_probe(train, label, train, k=1)
    other_rows = knn_probe(train, label, train, k=5, exclude_own_row=True)
    others = knn_probe(train, label, train, k=5, train_group_M=patient, test_group_Q=patient)
    assert (own.label_N == label).all()
    assert (other_rows.label_N == label).all()
    assert (others.label_N != label).sum() > 20


@pytest.mark.parametrize("standardise", [True, False])
def test_real_tiles_are_classified_as_scikit_learn_does(shared_data, standardise) -> None:
    """Raw, these features' deviations span six orders: some neighbours tie to 1e-8."""
    file = np.load(shared_data / "embeddings" / "kather2016_texture" / "best3_49.npz")
    row = np.random.default_rng(0).permutation(len(file["y"]))
    train, test = (file["X"][part].astype(float) for part in (row[:1500], row[1500:2000]))
    label, truth = file["y"][row[:1500]], file["y"][row[1500:2000]]
    scale = train.std(axis=0) if standardise else 1
    unit = [(side - train.mean(axis=0)) / scale for side in (train, test)]
    unit = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in unit]
    found = knn_probes(train, label, test, ks=(1, 20), standardise=standardise)
    for k, prediction in found.items():
        expected = KNeighborsClassifier(k, algorithm="brute").fit(unit[0], label)
        share = expected.predict_proba(unit[1])
        is_same = np.isclose(prediction.score_NC, share, atol=1e-7).all(axis=1)
        assert is_same.mean() >= (1 if standardise else 0.99)
        is_clear = is_same & (np.sort(share, axis=1)[:, -1] > np.sort(share, axis=1)[:, -2])
        predicted = expected.predict(unit[1])
        np.testing.assert_array_equal(prediction.label_N[is_clear], predicted[is_clear])
        assert (prediction.label_N == truth).mean() > 0.5


@pytest.mark.gpu
def test_cuda_votes_the_same(generator) -> None:
    train, test = generator.normal(size=(3000, 40)), generator.normal(size=(200, 40))
    code = generator.integers(0, 3, 3000)
    for settings in ({}, {"centre": False, "vote": "softmax"}, {"standardise": True}):
        ours = knn_probe(train, code, test, **settings)
        theirs = knn_probe(train, code, test, device="cuda", **settings)
        np.testing.assert_allclose(ours.score_NC, theirs.score_NC, atol=1e-4)


def test_a_tied_vote_goes_to_the_more_similar_class_then_to_the_first() -> None:
    # centred as given (their mean is 0); query at 0 degrees
    angle = np.radians([10, 40, 20, 25, 190, 220, 200, 205])
    train = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    label = np.array(["a", "a", "b", "b", "a", "b", "a", "b"])
    query = np.array([[1.0, 0.0]])
    assert knn_probe(train, label, query, k=4).label_N.tolist() == ["b"]  # 20, 25 beat 10, 40
    even = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=float)
    assert knn_probe(even, ["z", "b", "z", "b"], query, k=2).label_N.tolist() == ["b"]


def test_labels_may_be_words_and_come_back_as_they_were() -> None:
    prediction = knn_probe([[0.0, 1], [1, 0], [2, 0]], ["up", "flat", "flat"], [[5.0, 0.1]], k=1)
    assert prediction.label_N.tolist() == ["flat"]
    assert prediction.class_C.tolist() == ["flat", "up"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"k": 4}, r"k needs to be 1 to 3.*got 4.*fewer neighbours"),
        ({"k": 0}, "k needs to be 1 to 3"),
        (
            {"k": 3, "test_QD": np.eye(2)[[0, 1, 0]], "exclude_own_row": True},
            "k needs to be 1 to 2",
        ),
        ({"vote": "weighted"}, r"vote needs to be one of \('majority', 'softmax'\)"),
        ({"temperature": 0}, "temperature needs to be above 0; got 0"),
        ({"standardise": True, "centre": False}, "standardise needs centre"),
        ({"train_group_M": [1, 2, 3]}, "groups of both sides; got one"),
        ({"train_MD": np.ones((3, 2))}, "a feature that varies; got 3 equal rows"),
        ({"train_label_M": [0, 0, 0]}, "two classes or more.*got only"),
        ({"train_label_M": [0, 1]}, "one value for each of 3 rows"),
        ({"train_label_M": [0, 1, np.nan]}, "a value in each row.*first is row 2"),
        ({"test_QD": [[1.0]]}, "one width; got 2 and 1"),
        ({"test_QD": np.zeros((0, 2))}, "test needs a non-empty"),
        ({"train_MD": np.zeros((0, 2)), "train_label_M": []}, "train needs a non-empty"),
        ({"test_QD": [[np.nan, 1]]}, "NaN or an infinity in 1 of 1 rows"),
        ({"train_MD": [[1, 2], [np.inf, 0], [0, 0]]}, "first is row 1"),
        ({"train_MD": [[1, 2], [1e200, 0], [0, 0]]}, "first is row 1"),
    ],
)
def test_probe_refuses(change, match) -> None:
    given = {
        "train_MD": [[1.0, 2], [3, 4], [5, 7]],
        "train_label_M": [0, 1, 0],
        "test_QD": [[1.0, 1]],
        "k": 1,
    } | change
    with pytest.raises(ValueError, match=match):
        knn_probe(**given)


def test_numbers_of_neighbours_may_come_in_an_array(generator) -> None:
    train = generator.normal(size=(40, 3))
    found = knn_probes(train, np.arange(40) % 2, train, ks=np.array([1, 5]))
    assert sorted(found) == [1, 5]


def test_probes_refuse_no_k() -> None:
    with pytest.raises(ValueError, match="a number of neighbours; got none"):
        knn_probes(np.eye(3), [0, 1, 1], np.eye(3), ks=())
