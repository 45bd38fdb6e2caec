"""Tiles to watch a run on: what is refused before its first step, and how they are split."""

from __future__ import annotations

import numpy as np
import pytest
from watched import make_watched_tiles

from anlage.errors import LabelledDataError
from anlage.training.watched_rows import watched_splits
from anlage.training.watched_tiles import shown_tiles


def test_folds_are_of_whole_groups_and_always_the_same() -> None:
    tiles = make_watched_tiles(n_groups=12)
    splits = watched_splits(tiles, neighbours=5)
    assert len(splits) == 5
    assert sorted(np.concatenate([s.test for s in splits])) == list(range(len(tiles)))
    for split in splits:
        assert not set(tiles.group_N[split.train]) & set(tiles.group_N[split.test])
        assert set(tiles.label_N[split.train]) == {"pink", "violet"}
    again = watched_splits(make_watched_tiles(n_groups=12), neighbours=5)
    assert all((a.test == b.test).all() for a, b in zip(splits, again, strict=True))


def test_given_folds_are_kept() -> None:
    fold = np.repeat(["a", "a", "b", "b", "c", "c"], 5)
    splits = watched_splits(make_watched_tiles(fold_N=fold), neighbours=5)
    assert [split.name for split in splits] == ["a", "b", "c"]
    assert all((fold[split.test] == split.name).all() for split in splits)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"label_N": None}, "needs one value for each of 30 rows; got shape .*Give a label for"),
        ({"label_N": np.array([""] * 30)}, "needs a label for each watched tile; got none for 30"),
        ({"label_N": np.array(["pink", None] * 15, dtype=object)}, "none in 15 rows.*Give a label"),
        ({"label_N": np.array(["pink"] * 30)}, "two classes or more; got only 'pink'. Add tiles"),
        ({"label_N": np.array(["pink"] * 4)}, "one value for each of 30 rows; got shape .4"),
        ({"group_N": np.array([" "] * 30)}, "needs a group for each watched tile; got none for 30"),
        ({"label_N": np.array(["pink"] * 25 + ["red"] * 5)}, "one of class 'red': 'case5'. Add"),
        ({"fold_N": np.array(["a"] * 29)}, "folds needs one value for each of 30 rows"),
    ],
)
def test_refuses_tiles_that_no_probe_can_use(changes, match) -> None:
    with pytest.raises(LabelledDataError, match=f"^watched.csv: .*{match}"):
        make_watched_tiles(**changes)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((30, 3, 32, 32), np.float32),
        np.zeros((30, 32, 32, 3), np.uint8),
        np.zeros((30, 3, 32, 16), np.uint8),
        np.zeros((0, 3, 32, 32), np.uint8),
    ],
)
def test_refuses_what_is_no_square_uint8_tile(pixels) -> None:
    with pytest.raises(ValueError, match=r"needs \(N, 3, S, S\) uint8 pixels; got shape"):
        make_watched_tiles(pixels_N3SS=pixels)


@pytest.mark.parametrize(
    ("changes", "neighbours", "match"),
    [
        ({}, 26, "needs 26 watched tiles or more .*set watch.neighbours="),
        ({"fold_N": np.array(["a"] * 30)}, 5, "one split|two folds|folds"),
        ({"fold_N": np.array(["a", "b"] * 15)}, 5, "on one side only; got 6 on two"),
        ({"fold_N": np.repeat(["a", "b"] * 3, 5)}, 5, "class 'violet' only in fold b|'pink' only"),
    ],
)
def test_refuses_folds_that_cannot_train(changes, neighbours, match) -> None:
    with pytest.raises(LabelledDataError, match=match):
        watched_splits(make_watched_tiles(**changes), neighbours=neighbours)


def test_the_tiles_shown_take_turns_over_the_classes() -> None:
    label = np.array(["b"] * 10 + ["a"] * 10 + ["c"] * 10)
    group = np.repeat(["1", "2", "3", "4", "5", "6"], 5)
    tiles = make_watched_tiles(label_N=label, group_N=group)
    assert shown_tiles(tiles, 4).tolist() == [0, 10, 11, 20]
    assert len(shown_tiles(tiles, 99)) == 30
