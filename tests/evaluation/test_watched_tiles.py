"""Tiles for a run to be watched on: read as an evaluation reads them, thinned by whole groups."""

import numpy as np
import pytest

from anlage.errors import LabelledDataError
from anlage.evaluation.labelled_tiles import LabelledTiles
from anlage.evaluation.tile_pixels import fit_tile, read_tile_file
from anlage.evaluation.watched_tiles import watched_tiles


def test_pixels_labels_groups_and_folds_are_those_of_the_files(make_tiles) -> None:
    path = make_tiles(size_px=64, columns=("case", "mpp", "fold"))
    tiles = watched_tiles(path, tile_px=32, mpp=2.0)
    opened = LabelledTiles.open(path)
    assert tiles.pixels_N3SS.shape == (32, 3, 32, 32)
    for row, file in enumerate(opened.file_N):
        wanted, how = fit_tile(read_tile_file(opened.folder / file), tile_px=32, shrink=2.0)
        assert how == "cropped at mpp"
        assert (tiles.pixels_N3SS[row] == wanted.transpose(2, 0, 1)).all()
    for name in ("label_N", "group_N", "fold_N"):
        assert (getattr(tiles, name) == getattr(opened, name)).all()


def test_the_fingerprint_knows_what_was_taken_and_how(make_tiles) -> None:
    path = make_tiles(n_cases=10)
    whole = watched_tiles(path, tile_px=32, mpp=1.0)
    assert watched_tiles(path, tile_px=32, mpp=1.0).fingerprint == whole.fingerprint
    others = [
        watched_tiles(path, tile_px=16, mpp=1.0),
        watched_tiles(path, tile_px=32, mpp=0.5),
        watched_tiles(path, tile_px=32, mpp=1.0, most=20),
    ]
    found = {tiles.fingerprint for tiles in others}
    assert len(found | {whole.fingerprint}) == 4


@pytest.mark.parametrize("most", [16, 27, 39])
def test_whole_groups_are_taken_and_classes_stay_even(make_tiles, most) -> None:
    path = make_tiles(n_cases=12, per_case=4)
    tiles = watched_tiles(path, tile_px=32, mpp=1.0, most=most)
    assert most - 4 < len(tiles) <= most
    _, count = np.unique(tiles.group_N, return_counts=True)
    assert (count == 4).all()
    of_class = {str(c): int((tiles.label_N == c).sum()) for c in np.unique(tiles.label_N)}
    assert abs(of_class["pink"] - of_class["violet"]) <= 4
    again = watched_tiles(path, tile_px=32, mpp=1.0, most=most)
    assert (again.group_N == tiles.group_N).all()
    drawn = {
        tuple(watched_tiles(path, tile_px=32, mpp=1.0, most=16, seed=s).group_N) for s in range(5)
    }
    assert len(drawn) > 1


def test_a_rare_class_keeps_its_groups(make_tiles, change_rows) -> None:
    def rename(rows):
        for row in rows:
            if row["case"] in {"c0", "c2"}:
                row["label"] = "rare"

    path = change_rows(make_tiles(n_cases=20), rename)
    tiles = watched_tiles(path, tile_px=32, mpp=1.0, most=28)
    assert set(tiles.group_N[tiles.label_N == "rare"]) == {"c0", "c2"}


def test_refuses_groups_too_large_to_thin(make_tiles) -> None:
    path = make_tiles(n_cases=4, per_case=10)
    with pytest.raises(
        LabelledDataError, match="two cases of each class within 20 watched .* got 1"
    ):
        watched_tiles(path, tile_px=32, mpp=1.0, most=20)


def test_refuses_a_class_of_one_case(make_tiles) -> None:
    with pytest.raises(LabelledDataError, match="two groups .* one of class 'violet': 'c1'"):
        watched_tiles(make_tiles(n_cases=3), tile_px=32, mpp=1.0)


def test_refuses_a_file_without_labels(make_tiles, change_rows) -> None:
    def forget(rows):
        return [{k: v for k, v in row.items() if k != "label"} for row in rows]

    with pytest.raises(LabelledDataError, match="needs a column 'label'; got file, case, mpp"):
        watched_tiles(change_rows(make_tiles(), forget), tile_px=32, mpp=1.0)


def test_chosen_rows_alone_are_read(make_tiles) -> None:
    path = make_tiles(columns=("case", "mpp", "split"))
    tiles = watched_tiles(path, tile_px=32, mpp=1.0, where={"split": "train"})
    assert set(tiles.group_N) == {"c0", "c1", "c2", "c3"}
