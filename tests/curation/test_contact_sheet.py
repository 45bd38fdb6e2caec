"""Contact sheets show the tiles they say, at their place."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from curated_bags import Bags, features_of
from PIL import Image
from small_catalogue import make_catalogue

from anlage.curation.contact_sheet import (
    contact_sheet,
    look_at_clusters,
    thumbnails,
    write_sheets,
)
from anlage.curation.curate import CurateSettings, Curation, curate
from anlage.slides.catalogue import Catalogue
from anlage.slides.levels import read_tile


@pytest.fixture
def made(pool_folder: str, small: Catalogue, tmp_path: Path) -> Curation:
    settings = CurateSettings(levels=(8, 4), n_resamplings=2, n_sample=40)
    return curate(pool_folder, small, tmp_path / "out", settings=settings)


def test_thumbnails_are_the_tiles_made_small(made: Curation, small: Catalogue) -> None:
    rows = np.array([100, 3, 60, 4])
    found = thumbnails(made.pool, small, rows, px=16)
    for row in rows.tolist():
        x, y = made.pool.corner_N2[row].tolist()
        with small.open_slide(made.pool.slide_ids[made.pool.slide_N[row]]) as slide:
            tile = read_tile(slide, x, y, size_px=32, mpp=1.0)
        wanted = cv2.resize(tile, (16, 16), interpolation=cv2.INTER_AREA)
        np.testing.assert_array_equal(found[row], wanted)


def test_numbers_are_those_of_a_count(made: Curation, small: Catalogue) -> None:
    looks = look_at_clusters(made, small, n_shown=6)
    assert [look.number for look in looks] == sorted(set(made.path_NT[:, 0].tolist()))
    assert sum(look.share for look in looks) == pytest.approx(1)
    for look in looks:
        rows = np.flatnonzero(made.path_NT[:, 0] == look.number)
        assert look.n_tiles == len(rows)
        assert look.n_listed == len(set(rows) & set(made.chosen_M.tolist()))
        assert look.share == pytest.approx(look.n_listed / 40)
        assert look.n_finest == len(set(made.path_NT[rows, 1].tolist()))
        slides = Counter(made.pool.slide_ids[s] for s in made.pool.slide_N[rows])
        assert dict(look.slides) == slides
        assert look.n_slides == len(slides)
        assert look.labels == {"stain": (("H&E", len(rows)),)}
        assert len(look.thumbnails) == min(6, look.n_listed)


def test_a_sheet_has_every_picture_at_its_place(made: Curation, small: Catalogue) -> None:
    pictures = [np.full((10, 10, 3), n, np.uint8) for n in range(5)]
    sheet = contact_sheet(pictures, n_columns=3)
    assert sheet.shape == (32, 46, 3)
    for n in range(5):
        row, column = divmod(n, 3)
        assert (sheet[4 + 14 * row : 14 + 14 * row, 4 + 14 * column : 14 + 14 * column] == n).all()
    assert (sheet[:4] == 255).all()
    assert (sheet[18:, 32:] == 255).all()


def test_every_cluster_has_its_file(made: Curation, small: Catalogue, tmp_path: Path) -> None:
    looks = look_at_clusters(made, small, n_shown=9)
    (tmp_path / "sheets").mkdir()
    (tmp_path / "sheets" / "cluster_9999.png").write_bytes(b"of an earlier run")
    written = write_sheets(looks, tmp_path / "sheets")
    assert sorted((tmp_path / "sheets").iterdir()) == written
    assert [path.name for path in written] == [f"cluster_{look.number:04d}.png" for look in looks]
    for path, look in zip(written, looks, strict=True):
        np.testing.assert_array_equal(np.array(Image.open(path)), contact_sheet(look.thumbnails))


def test_tiles_that_cannot_be_read_are_grey(tmp_path: Path) -> None:
    own = make_catalogue(tmp_path / "slides", 2)
    bags = Bags(own, tmp_path / "bags")
    bags.write("a", features_of(0))
    folder = bags.write("b", features_of(1))
    settings = CurateSettings(levels=())
    made = curate(folder, own, tmp_path / "out", settings=settings)
    (tmp_path / "slides" / "a.tif").unlink()
    found = thumbnails(made.pool, own, np.array([0, 60]))
    assert (found[0] == 200).all()
    assert not (found[60] == 200).all()
    (look,) = look_at_clusters(made, own)
    assert (look.n_tiles, look.n_finest, len(look.thumbnails)) == (96, 1, 24)
