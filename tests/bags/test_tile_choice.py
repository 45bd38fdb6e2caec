"""Which tiles a draw takes: a function of seed and draw, each tile as likely."""

import numpy as np
import pytest

from anlage.bags.tile_choice import TileChoice


def test_a_choice_without_a_limit_takes_all_as_they_are():
    assert TileChoice(seed=0).rows(9, g=1) is None
    assert TileChoice(seed=0, max_tiles=9).rows(9, g=1) is None


def test_a_sample_keeps_the_order_of_the_bag_and_a_shuffle_does_not():
    sampled, shuffled = (TileChoice(seed=5, max_tiles=20, is_shuffled=s) for s in (False, True))
    for g in range(20):
        kept, mixed = sampled.rows(50, g=g), shuffled.rows(50, g=g)
        assert len(set(kept.tolist())) == 20
        assert (np.diff(kept) > 0).all()
        assert (np.diff(mixed) < 0).any()
        np.testing.assert_array_equal(np.sort(mixed), kept)
    assert sorted(TileChoice(seed=5, is_shuffled=True).rows(30, g=0)) == list(range(30))


def test_a_sample_depends_on_seed_and_draw_alone():
    rows = TileChoice(seed=5, max_tiles=20).rows(50, g=7)
    np.testing.assert_array_equal(TileChoice(seed=5, max_tiles=20).rows(50, g=7), rows)
    assert TileChoice(seed=5, max_tiles=20).rows(50, g=8).tolist() != rows.tolist()
    assert TileChoice(seed=6, max_tiles=20).rows(50, g=7).tolist() != rows.tolist()


def test_each_tile_is_as_likely_as_any_other():
    """Binomial of 2,000 draws at 0.4: five standard deviations are 110."""
    choice, count = TileChoice(seed=0, max_tiles=4), np.zeros(10)
    for g in range(2000):
        count[choice.rows(10, g=g)] += 1
    assert np.abs(count - 800).max() < 110


def test_a_choice_of_no_tile_is_refused():
    with pytest.raises(ValueError, match="max_tiles of 1 or more; got 0"):
        TileChoice(seed=0, max_tiles=0)
