import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from anlage.probes.neighbours import knn
from anlage.probes.neighbours.knn import knn_probe, nearest


def brute_force(query, bank, k, *, exclude_own_row=False):
    """Every pair in float64, sorted by (-similarity, row)."""
    result = []
    for i, q in enumerate(query.astype(np.float64)):
        similarity = [
            (-float(q @ b) / (np.linalg.norm(q) * np.linalg.norm(b)), j)
            for j, b in enumerate(bank.astype(np.float64))
            if not (exclude_own_row and i == j)
        ]
        result.append([j for _, j in sorted(similarity)[:k]])
    return np.array(result)


@pytest.mark.parametrize("k", [1, 3, 40])
def test_nearest_is_brute_force(generator, k) -> None:
    query, bank = generator.normal(size=(13, 8)), generator.normal(size=(40, 8))
    index, similarity = nearest(query, bank, k=k)
    np.testing.assert_array_equal(index, brute_force(query, bank, k))
    assert (np.diff(similarity, axis=1) <= 0).all()
    assert index.dtype == np.int64
    assert similarity.dtype == np.float32


def test_blocks_change_nothing(generator, monkeypatch) -> None:
    bank = generator.integers(-2, 3, size=(60, 5)).astype(float)  # many equal similarities
    bank[7] = 0
    whole = nearest(bank, bank, k=6, exclude_own_row=True)
    monkeypatch.setattr(knn, "BLOCK_BYTES", 4 * 60 * 7)
    blocks = nearest(bank, bank, k=6, exclude_own_row=True)
    np.testing.assert_allclose(whole[1], blocks[1], atol=1e-6)
    assert not (blocks[0] == np.arange(60)[:, None]).any()


def test_own_row_is_left_out_in_every_block(generator, monkeypatch) -> None:
    bank = generator.normal(size=(50, 6))
    monkeypatch.setattr(knn, "BLOCK_BYTES", 4 * 50 * 8)
    index, _ = nearest(bank, bank, k=4, exclude_own_row=True)
    np.testing.assert_array_equal(index, brute_force(bank, bank, 4, exclude_own_row=True))
    assert (nearest(bank, bank, k=1)[0][:, 0] == np.arange(50)).all()


def test_equal_similarities_go_to_the_lower_row() -> None:
    bank = np.tile([[1.0, 0.0]], (9, 1))
    bank[4] = [0.0, 1.0]
    index, similarity = nearest(np.array([[2.0, 0.0]]), bank, k=5)
    assert index.tolist() == [[0, 1, 2, 3, 5]]
    assert similarity.tolist() == [[1.0] * 5]


def test_huge_and_zero_rows_are_compared() -> None:
    _, similarity = nearest(np.array([[3e38, 3e38], [0, 0]]), np.array([[1.0, 1.0]]), k=1)
    np.testing.assert_allclose(similarity[:, 0], [1, 0], atol=1e-6)


def test_probe_is_scikit_learns_where_no_vote_is_tied(generator) -> None:
    train, test = generator.normal(2, 1, size=(200, 6)), generator.normal(2, 1, size=(60, 6))
    label = (train[:, 0] > 2).astype(int)  # two classes and odd k: never a tie
    unit_train = train - train.mean(0)
    unit_test = test - train.mean(0)
    unit_train /= np.linalg.norm(unit_train, axis=1, keepdims=True)
    unit_test /= np.linalg.norm(unit_test, axis=1, keepdims=True)
    expected = KNeighborsClassifier(7).fit(unit_train, label)
    prediction = knn_probe(train, label, test, k=7)
    np.testing.assert_array_equal(prediction.label_N, expected.predict(unit_test))
    np.testing.assert_allclose(prediction.score_NC, expected.predict_proba(unit_test), atol=1e-7)


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
    k = given.pop("k")
    with pytest.raises(ValueError, match=match):
        knn_probe(*given.values(), k=k)


def test_nearest_refuses() -> None:
    with pytest.raises(ValueError, match="k needs to be 1 to 2"):
        nearest(np.eye(3), np.eye(3), k=3, exclude_own_row=True)
    with pytest.raises(ValueError, match="the bank itself as the query"):
        nearest(np.eye(3)[:2], np.eye(3), k=1, exclude_own_row=True)
    with pytest.raises(ValueError, match="one width"):
        nearest(np.eye(3), np.eye(4), k=1)
