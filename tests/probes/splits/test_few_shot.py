"""Few-shot samplers: sizes, uniformity, nesting, seeds, patients, refusals."""

import numpy as np
import pytest

from anlage.probes.splits.few_shot import (
    _some_of_each,
    _without_replacement,
    few_shot_patients,
    few_shot_rows,
    label_fraction,
    refuse_shared_patients,
)

LABEL = np.repeat(["a", "b", "c"], [40, 12, 25])[np.random.default_rng(0).permutation(77)]
PATIENT = np.random.default_rng(1).integers(0, 15, 77)


def bags(supports, n_episodes):
    """Rows of each episode and class, (E, C) lists."""
    rows, start = supports.rows(0, n_episodes)
    parts = np.split(rows, start[1:-1])
    n_classes = len(supports.class_C)
    return [parts[e * n_classes : (e + 1) * n_classes] for e in range(n_episodes)]


def test_each_episode_sees_k_different_rows_of_each_class():
    supports = few_shot_rows(LABEL, shots=12, n_episodes=50)
    for episode in bags(supports, 50):
        for name, rows in zip("abc", episode, strict=True):
            assert len(set(rows.tolist())) == 12
            assert set(LABEL[rows]) == {name}


def test_every_row_is_as_likely_at_every_place():
    drawn = _without_replacement(np.random.default_rng(0), 7, 4, 14_000)
    for place in range(4):
        counts = np.bincount(drawn[:, place], minlength=7)
        assert ((counts - 2000) ** 2 / 2000).sum() < 22.5  # chi-square, 6 degrees, p = 0.001
    pairs = np.bincount(drawn[:, 0] * 7 + drawn[:, 3], minlength=49).reshape(7, 7)
    assert (np.diag(pairs) == 0).all()
    assert ((pairs[~np.eye(7, dtype=bool)] - 14_000 / 42) ** 2 / (14_000 / 42)).sum() < 75


def test_blocks_of_the_shuffle_change_nothing(monkeypatch):
    some = _without_replacement(np.random.default_rng(5), 30, 9, 20)
    whole = _without_replacement(np.random.default_rng(5), 30, 30, 20)
    monkeypatch.setattr("anlage.probes.splits.few_shot.TABLE_VALUES", 100)  # 3 episodes at a time
    blocks = _without_replacement(np.random.default_rng(5), 30, 30, 20)
    assert (whole == blocks).all()
    assert (some == _without_replacement(np.random.default_rng(5), 30, 9, 20)).all()
    assert (some == whole[:, :9]).all()
    assert (np.sort(whole, axis=1) == np.arange(30)).all()


def test_seeds_and_numbers_of_shots_draw_independently_unless_nested():
    four = few_shot_rows(LABEL, shots=4, n_episodes=30, seed=3).unit_ECK
    assert (four == few_shot_rows(LABEL, shots=4, n_episodes=30, seed=3).unit_ECK).all()
    assert (four != few_shot_rows(LABEL, shots=4, n_episodes=30, seed=4).unit_ECK).any()
    eight = few_shot_rows(LABEL, shots=8, n_episodes=30, seed=3).unit_ECK
    assert (four != eight[:, :, :4]).any()
    nested = [few_shot_rows(LABEL, shots=k, n_episodes=30, nested=True).unit_ECK for k in (2, 4, 8)]
    assert (nested[0] == nested[1][:, :, :2]).all()
    assert (nested[1] == nested[2][:, :, :4]).all()


def test_rows_of_a_block_of_episodes_are_those_of_all():
    supports = few_shot_patients(LABEL, PATIENT, shots=3, n_episodes=9)
    together = bags(supports, 9)
    rows, start = supports.rows(4, 6)
    parts = np.split(rows, start[1:-1])
    for got, expected in zip(parts, together[4] + together[5], strict=True):
        assert (got == expected).all()
    beyond, _ = supports.rows(8, 20)
    assert (beyond == np.concatenate(together[8])).all()


def test_patients_come_with_all_their_rows_of_the_class():
    supports = few_shot_patients(LABEL, PATIENT, shots=3, n_episodes=20, seed=2)
    for episode in bags(supports, 20):
        for name, rows in zip("abc", episode, strict=True):
            patients = np.unique(PATIENT[rows])
            assert len(patients) == 3
            expected = np.flatnonzero(np.isin(PATIENT, patients) & (name == LABEL))
            assert (np.sort(rows) == expected).all()


def test_rows_of_each_patient_are_bounded_and_different():
    supports = few_shot_patients(LABEL, PATIENT, shots=4, rows_per_patient=2, n_episodes=40)
    for episode in bags(supports, 40):
        for name, rows in zip("abc", episode, strict=True):
            patients, counts = np.unique(PATIENT[rows], return_counts=True)
            have = [((p == PATIENT) & (name == LABEL)).sum() for p in patients]
            assert len(patients) == 4
            assert (counts == np.minimum(have, 2)).all()
            assert len(set(rows.tolist())) == len(rows)
            assert set(LABEL[rows]) == {name}


def test_some_of_each_is_uniform_over_subsets():
    drawn = _some_of_each(np.random.default_rng(0), np.full(12_000, 4), 2)
    subsets = np.bincount((2**drawn).sum(axis=1), minlength=16)
    subsets = subsets[[3, 5, 6, 9, 10, 12]]
    assert subsets.sum() == 12_000
    assert ((subsets - 2000) ** 2 / 2000).sum() < 20.5
    few = _some_of_each(np.random.default_rng(0), np.array([1, 2, 3]), 3)
    assert [sorted(row) for row in few.tolist()] == [[-1, -1, 0], [-1, 0, 1], [0, 1, 2]]


def test_nested_patients():
    two, six = (
        few_shot_patients(LABEL, PATIENT, shots=k, n_episodes=10, nested=True).unit_ECK
        for k in (2, 6)
    )
    assert (two == six[:, :, :2]).all()


def test_rows_of_nested_patients_are_nested_too():
    one, five = (
        few_shot_patients(
            LABEL, PATIENT, shots=k, rows_per_patient=2, n_episodes=30, nested=True
        ).unit_ECK
        for k in (1, 5)
    )
    assert (one == five[:, :, :2]).all()
    apart = few_shot_patients(LABEL, PATIENT, shots=5, rows_per_patient=2, n_episodes=30).unit_ECK
    assert (apart != five).any()


def test_rows_of_patients_are_not_drawn_from_the_bits_that_drew_the_patients():
    """100 patients of 100 rows: place of the row against place of a patient, draw by draw."""
    label, patient = np.repeat([0, 1], 10_000), np.arange(20_000) // 100
    row = few_shot_patients(label, patient, shots=1, rows_per_patient=1, n_episodes=4000).unit_ECK
    patient_of_second = row[:2000, 1, 0] // 100
    place_in_patient = row.ravel()[:2000] % 100
    assert abs(np.corrcoef(patient_of_second, place_in_patient)[0, 1]) < 0.1


@pytest.mark.parametrize("seed", range(5))
def test_label_fractions_take_whole_patients_and_nest(seed):
    label = np.repeat(["x", "y", "z"], [100, 50, 30])
    patient = np.repeat(np.arange(36), 5)  # 20, 10 and 6 patients
    smaller: set[int] = set()
    for fraction, expected in ((0.01, 3), (0.2, 4 + 2 + 1), (0.5, 18), (1.0, 36)):
        rows = label_fraction(label, patient, fraction=fraction, seed=seed)
        kept = np.unique(patient[rows])
        assert len(kept) == expected
        assert len(rows) == 5 * expected
        assert (np.diff(rows) > 0).all()
        assert set(label[rows]) == {"x", "y", "z"}
        assert smaller <= set(rows.tolist())
        smaller = set(rows.tolist())
    other = label_fraction(label, patient, fraction=0.2, seed=seed + 100)
    assert set(other.tolist()) != set(label_fraction(label, patient, fraction=0.2, seed=seed))


def test_patients_of_several_classes_count_for_their_rarest():
    label = np.array(["common", "rare", "common", "common", "common"])
    patient = np.array(["p", "p", "q", "r", "s"])
    assert {0, 1} <= set(label_fraction(label, patient, fraction=0.4).tolist())


def test_a_fraction_that_loses_a_class_is_refused():
    label = np.array(["a", "a", "c", "d", "d", "c", "e", "e", "c"])  # who has c has a rarer one
    patient = np.array([1, 2, 2, 3, 4, 4, 5, 6, 6])

    def with_many_seeds():  # one in eight keeps patients 1, 3 and 5
        for seed in range(40):
            rows = label_fraction(label, patient, fraction=0.1, seed=seed)
            assert set(label[rows]) == {"a", "c", "d", "e"}

    with pytest.raises(ValueError, match=r"got none of \['c'\] at a fraction of 0.1. Raise"):
        with_many_seeds()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: few_shot_rows(LABEL, shots=16),
            "16 shots need 16 rows of each class; got only 12 of 'b'. Ask for at most 12 shots",
        ),
        (
            lambda: few_shot_patients(LABEL, PATIENT, shots=12),
            "12 shots need 12 patients of each class; got only",
        ),
        (lambda: few_shot_rows(LABEL, shots=0), "got shots=0, n_episodes=1000"),
        (lambda: few_shot_rows(LABEL, shots=1, n_episodes=0), "got shots=1, n_episodes=0"),
        (lambda: few_shot_rows(["a"] * 9, shots=1), "needs two classes or more; got only"),
        (lambda: few_shot_rows([], shots=1), "non-empty"),
        (lambda: few_shot_rows([0.0, np.nan], shots=1), "got none in 1 rows"),
        (lambda: few_shot_patients(LABEL, PATIENT[:-1], shots=1), "one value for each of 77 rows"),
        (
            lambda: few_shot_patients(LABEL, PATIENT, shots=1, rows_per_patient=0),
            "rows_per_patient needs to be 1 or more; got 0",
        ),
        (
            lambda: few_shot_patients(LABEL, PATIENT, shots=1, test_patient=[3, 99, 4]),
            "got 2 on both, such as 3, 4. Split by patient first",
        ),
        (
            lambda: label_fraction(LABEL, PATIENT, fraction=0.5, test_patient=[14]),
            "got 1 on both, such as 14",
        ),
        (lambda: label_fraction(LABEL, PATIENT, fraction=5), "at most 1; got 5"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        call()


@pytest.mark.parametrize("test", [["1", "9"], [1.0, 9.0], [" 1", "9"]])
def test_a_patient_of_another_type_or_with_spaces_is_the_same_patient(test):
    with pytest.raises(ValueError, match="got 1 on both, such as 1"):
        refuse_shared_patients("x", np.array([1, 2]), test)


def test_patients_of_one_side_pass():
    refuse_shared_patients("x", np.array([1, 2]), None)
    refuse_shared_patients("x", np.array([1, 2]), [3])
