import numpy as np
import pytest

from anlage.probes.uncertainty import resampling
from anlage.probes.uncertainty.resampling import (
    class_counts,
    jackknife_blocks,
    leave_out_weights,
    resample_weights,
    strata_of_classes,
)


def weights(*args, **settings):
    return np.concatenate(list(resample_weights(*args, **settings)))


def test_resamples_draw_as_many_groups_as_there_are_and_follow_the_seed() -> None:
    first, again, other = (weights(9, n_resamples=50, seed=seed) for seed in (1, 1, 2))
    assert (first.sum(1) == 9).all()
    assert (first == again).all()
    assert (first != other).any()


def test_two_groups_have_a_known_distribution() -> None:
    share = np.bincount(weights(2, n_resamples=4000, seed=0)[:, 0].astype(int)) / 4000
    np.testing.assert_allclose(share, [0.25, 0.5, 0.25], atol=0.03)


def test_each_stratum_keeps_its_number_and_is_drawn_evenly() -> None:
    stratum = np.array([2, 0, 0, 7, 2, 0, 2, 2])
    drawn = weights(8, n_resamples=4000, seed=0, stratum_G=stratum)
    for name, size in ((0, 3), (2, 4), (7, 1)):
        np.testing.assert_allclose(drawn[:, stratum == name].sum(1), size)
    np.testing.assert_allclose(drawn.mean(0), 1, atol=0.06)
    assert set(np.unique(drawn[:, 1])) == {0, 1.5, 3}  # two drawings of three groups


@pytest.mark.parametrize("size", [2, 5])
def test_a_mean_within_a_stratum_spreads_as_a_mean_of_its_groups_does(generator, size) -> None:
    """The unbiased variance of a mean, s^2 / m; plain draws of m give (m - 1) / m of it."""
    value = generator.normal(size=size)
    stratum = np.repeat([0, 1], [size, 3])
    drawn = weights(size + 3, n_resamples=20_000, seed=1, stratum_G=stratum)[:, :size]
    assert (drawn @ value / size).var() == pytest.approx(value.var(ddof=1) / size, rel=0.05)


def test_one_stratum_is_none_and_blocks_change_nothing(monkeypatch) -> None:
    stratum = np.array([0, 1, 0, 1, 1, 0, 0])
    free, strata = (weights(7, n_resamples=30, seed=3, stratum_G=s) for s in (None, stratum))
    one = weights(7, n_resamples=30, seed=3, stratum_G=np.full(7, 5))
    monkeypatch.setattr(resampling, "BLOCK_WEIGHTS", 7 * 4)
    assert (one == free).all()
    assert (weights(7, n_resamples=30, seed=3) == free).all()
    assert (weights(7, n_resamples=30, seed=3, stratum_G=stratum) == strata).all()


def test_leaving_one_out(monkeypatch) -> None:
    monkeypatch.setattr(resampling, "BLOCK_WEIGHTS", 10)
    one_each = jackknife_blocks(np.array([0, 1, 0, 0, 1]))
    np.testing.assert_array_equal(np.concatenate(list(leave_out_weights(one_each))), 1 - np.eye(5))


def test_many_groups_are_left_out_in_even_blocks_of_one_stratum() -> None:
    stratum = np.repeat([0, 1, 2], [70_000, 29_997, 3])
    block = jackknife_blocks(stratum)
    size_J = np.bincount(block)
    assert 2000 <= len(size_J) <= 2003
    assert (np.unique(stratum * 10_000 + block).size, size_J.max()) == (len(size_J), 50)
    assert size_J[block[stratum < 2]].min() >= 49
    assert (block == jackknife_blocks(stratum)).all()
    assert np.ptp(np.flatnonzero(block == 0)) > 10_000  # not neighbours, which may be alike


def test_classes_are_counted_by_group() -> None:
    counted = class_counts(np.array(["b", "a", "b"]), np.array([0, 1, 0]), 3)
    np.testing.assert_array_equal(counted, [[0, 2], [1, 0], [0, 0]])


@pytest.mark.parametrize(
    ("holds", "strata"),
    [
        ([[1, 0], [1, 0], [0, 1]], [0, 0, 1]),  # pure: the class
        ([[9, 1], [9, 0], [9, 0]], [1, 0, 0]),  # the rarer class, though a minority of its rows
        ([[1, 1], [1, 1]], [0, 0]),  # as many: the first
    ],
)
def test_the_stratum_is_the_class_that_fewest_groups_hold(holds, strata) -> None:
    assert strata_of_classes(np.array(holds, dtype=float)).tolist() == strata


def test_no_class_that_has_a_stratum_vanishes(generator) -> None:
    count_GC = (generator.random((20, 4)) < [0.9, 0.5, 0.3, 0.1]).astype(float)
    count_GC[:, 0] += count_GC.sum(1) == 0
    stratum = strata_of_classes(count_GC)
    kept = weights(20, n_resamples=500, seed=0, stratum_G=stratum) @ count_GC > 0
    assert kept[:, np.unique(stratum)].all()
