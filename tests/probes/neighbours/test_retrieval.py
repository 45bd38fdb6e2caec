import numpy as np
import pytest

from anlage.probes.neighbours.retrieval import pair_retrieval, retrieval


def slow_retrieval(database, label, query, query_label, *, k, hidden=None):
    """Acc@1, ..., Acc@k and MVAcc@k, query by query, in float64."""
    mean = database.mean(axis=0)
    database, query = database - mean, query - mean
    hits, votes = np.zeros(k), 0
    for i, row in enumerate(query):
        similarity = (database @ row) / np.linalg.norm(database, axis=1) / np.linalg.norm(row)
        order = [
            j for j in np.argsort(-similarity, kind="stable") if not hidden or not hidden(i, j)
        ]
        found = [label[j] for j in order[:k]]
        for place in range(k):
            hits[place] += query_label[i] in found[: place + 1]
        total = {c: similarity[[j for j in order[:k] if label[j] == c]].sum() for c in set(found)}
        votes += min(found, key=lambda c: (-found.count(c), -total[c], c)) == query_label[i]
    return hits / len(query), votes / len(query)


@pytest.fixture
def sides(generator):
    centre = generator.normal(size=(4, 6))
    code, query_code = generator.integers(0, 4, 150), generator.integers(0, 4, 40)
    database = centre[code] + generator.normal(size=(150, 6)) + 2
    query = centre[query_code] + generator.normal(size=(40, 6)) + 2
    names = np.array(["a", "b", "c", "d"])
    return database, names[code], query, names[query_code]


def test_accuracies_are_counted_query_by_query(sides) -> None:
    found = retrieval(*sides)
    hits, votes = slow_retrieval(*sides, k=5)
    assert [found.at(k) for k in (1, 2, 3, 4, 5)] == pytest.approx(hits.tolist())
    assert found.majority_accuracy() == pytest.approx(votes)
    assert 0.2 < found.at(1) < found.at(3) < found.at(5)
    assert found.hit_at(3).shape == (40,)


def test_no_query_finds_its_own_patient(sides, generator) -> None:
    group, query_group = generator.integers(0, 6, 150), generator.integers(0, 8, 40)
    found = retrieval(*sides, database_group_M=group, query_group_Q=query_group)
    hits, votes = slow_retrieval(*sides, k=5, hidden=lambda i, j: group[j] == query_group[i])
    assert [found.at(k) for k in (1, 3, 5)] == pytest.approx(hits[[0, 2, 4]].tolist())
    assert found.majority_accuracy() == pytest.approx(votes)
    assert (group[found.index_QK] != query_group[:, None]).all()


def test_a_tied_vote_goes_to_the_more_similar_class() -> None:
    angle = np.radians([0, 30, 10, 15, 180, 210, 190, 195])
    database = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    label = ["a", "a", "b", "b", "c", "c", "c", "c"]
    query = np.array([[1.0, 0.0]])
    assert retrieval(database, label, query, ["b"], k=4).majority_Q.tolist() == [True]
    assert retrieval(database, label, query, ["a"], k=4).rank_Q.tolist() == [1]
    assert retrieval(database, label, query, ["c"], k=4).rank_Q.tolist() == [0]


def test_pairs_are_ranked_as_by_a_full_sort(generator) -> None:
    image = generator.normal(size=(60, 8))
    text = image + 1.2 * generator.normal(size=(60, 8))
    found = pair_retrieval(image, text, k=60)
    unit = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in (image, text)]
    similarity = unit[0] @ unit[1].T
    rank = (similarity > np.diag(similarity)[:, None]).sum(axis=1) + 1
    np.testing.assert_array_equal(found.rank_Q, rank)
    assert found.at(10) == np.mean(rank <= 10)
    assert found.at(60) == 1
    shuffled = generator.permutation(60)
    other = pair_retrieval(image, text[shuffled], pair_Q=np.argsort(shuffled), k=60)
    np.testing.assert_array_equal(other.rank_Q, rank)


def test_centring_pairs_takes_the_gap_between_modalities_away(generator) -> None:
    image = generator.normal(size=(80, 8))
    text = image + 0.3 * generator.normal(size=(80, 8)) + 30 * generator.normal(size=8)
    assert pair_retrieval(image, text, centre=True).at(1) > pair_retrieval(image, text).at(1) + 0.3


@pytest.mark.gpu
def test_cuda_retrieves_the_same(sides) -> None:
    ours, theirs = retrieval(*sides), retrieval(*sides, device="cuda")
    np.testing.assert_array_equal(ours.rank_Q, theirs.rank_Q)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"query_label_Q": ["a", "x"]}, r"in the database; got none for 1 queries of \['x'\]"),
        ({"k": 5}, "k needs to be 1 to 4"),
        ({"query_label_Q": ["a"]}, "query labels needs one value for each of 2 rows"),
        (
            {"database_group_M": [1, 1, 2, 2], "query_group_Q": [3, 2], "k": 2},
            r"outside their own group; got none for 1 queries of \['b'\]",
        ),
        ({"query_QD": np.zeros((0, 2)), "query_label_Q": []}, "query needs a non-empty"),
        ({"query_QD": np.ones((2, 3))}, "one width"),
    ],
)
def test_retrieval_refuses(change, match) -> None:
    given = {
        "database_MD": np.array([[1.0, 0], [2, 1], [0, 1], [1, 2]]),
        "database_label_M": ["a", "a", "b", "b"],
        "query_QD": np.eye(2),
        "query_label_Q": ["a", "b"],
        "k": 3,
    }
    with pytest.raises(ValueError, match=match):
        retrieval(**(given | change))


def test_pairs_and_places_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="a database row for each query; got 2 queries and 3 rows"):
        pair_retrieval(np.eye(3)[:2], np.eye(3), k=1)
    with pytest.raises(ValueError, match="pairs need rows of the database, 0 to 2; got 0 to 3"):
        pair_retrieval(np.eye(3)[:2], np.eye(3), pair_Q=[0, 3], k=1)
    found = pair_retrieval(np.eye(3), np.eye(3), k=2)
    assert found.at(1) == 1
    with pytest.raises(ValueError, match="k needs to be 1 to 2; got 3"):
        found.at(3)
    with pytest.raises(ValueError, match="a vote needs classes"):
        found.majority_accuracy()
