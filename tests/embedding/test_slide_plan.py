from dataclasses import replace

import numpy as np
import pytest
from small_encoder import make_encoder

from anlage.embedding.slide_plan import Grid, bag_attributes, plan_slides, tiles_of
from anlage.errors import CatalogueError
from anlage.slides.indexing.index import index_slides
from anlage.tiles.spec import TileSpec

SPEC = TileSpec(size_px=32, mpp=1.0, stride_px=32, min_tissue=0.25)


def test_tiles_lie_on_the_grid_and_on_tissue(catalogue):
    corners = tiles_of(catalogue, catalogue.row("a"), SPEC)
    assert corners.dtype == np.int64
    assert (corners % 64 == 0).all()  # 32 px at 1 mpp are 64 level-0 pixels at 0.5
    assert corners.max(axis=0).tolist() == [576, 384]  # 640 would cross the edge at 700
    assert corners.min(axis=0).tolist() == [64, 0]  # the first column is glass
    assert 9 * 7 - 4 <= len(corners) <= 9 * 7  # the mask's corners are round


def test_min_tissue_and_stride_are_heeded(catalogue):
    row = catalogue.row("a")
    dense = TileSpec(size_px=32, mpp=1.0, stride_px=16, min_tissue=0.25)
    strict = TileSpec(size_px=32, mpp=1.0, stride_px=32, min_tissue=1.0)
    assert len(tiles_of(catalogue, row, dense)) > 3 * 59
    assert len(tiles_of(catalogue, row, strict)) < 59
    assert len(tiles_of(catalogue, catalogue.row("bb"), SPEC)) == 0


def test_a_mask_that_cannot_resolve_a_tile_is_refused(slides, tmp_path):
    coarse = index_slides([slides], tmp_path / "coarse.parquet", mask_mpp=40.0).catalogue
    with pytest.raises(CatalogueError, match="slide 'a': .*Compute the mask at 32 mpp or finer"):
        tiles_of(coarse, coarse.row("a"), SPEC)


def test_attributes_say_what_the_bag_is_made_from(catalogue):
    encoder, row = make_encoder(mpp=1.0), catalogue.row("b")
    made = bag_attributes(row, encoder, Grid(SPEC, "srgb"), icc_profile="none")
    assert (made.colour, made.icc_profile) == ("srgb", "none")
    assert made.encoder_fingerprint == encoder.fingerprint
    assert made.slide_fingerprint == row.fingerprint
    assert (made.slide_mpp, made.slide_width_px, made.slide_height_px) == (row.mpp, 330, 260)
    assert (made.tile_px, made.mpp, made.precision) == (32, 1.0, "fp32")
    assert made.tile_level0_px == pytest.approx(64, rel=1e-6)


def test_a_slide_id_that_is_no_file_name_is_refused(catalogue, tmp_path, monkeypatch):
    ids = ["../a", "b", "x/y", "c", "d"]
    rows = [replace(row, slide_id=i) for row, i in zip(catalogue.rows(), ids, strict=True)]
    monkeypatch.setattr(catalogue, "iter_rows", lambda: iter(rows))
    encoder = make_encoder(mpp=1.0)
    grid = Grid(SPEC, "stored")
    plan = plan_slides(catalogue, tmp_path / "bags", encoder=encoder, grid=grid)
    assert list(plan.todo) == ["b", "c", "d"]
    assert [slide.reason.split("'")[1] for slide in plan.refused] == ["../a", "x/y"]
