"""All files of a slide: their names, the table as it was, every head beside the others."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from scored_tiles import scored
from synthetic_slides import ArraySlide, tissue_like

from anlage.errors import AnlageError
from anlage.explain.pictures import CAPTION_PX, GAP_PX, LINE_PX
from anlage.explain.slide_explanation import SlideExplanation
from anlage.explain.slide_files import heads_sheet, told_of, write_slide_files
from anlage.explain.slide_heat import colours_of

CORNERS = [[x, y] for y in (0, 64) for x in (0, 64, 128)]


def make(heads=()):
    weights = np.array([1, 2, 3, 4, 5, 6]) / 21
    return SlideExplanation(
        tiles=scored(CORNERS, weights, edge=63.5, size=(320, 160), heads=heads),
        model="m",
        encoder="e",
        prediction=(),
        notes=(),
        facts={"format": "slide_explanation/1", "slide_id": "s"},
    )


def test_the_table_holds_places_and_raw_scores(tmp_path) -> None:
    made = make(heads=[np.zeros(6)])
    written = write_slide_files(made, tmp_path, slide=None, n_shown=12)
    assert sorted(written.files) == sorted(path.name for path in tmp_path.iterdir())
    table = pq.read_table(tmp_path / "tiles.parquet")
    assert table["slide_id"].to_pylist() == ["s"] * 6
    np.testing.assert_array_equal(np.stack([table["x"], table["y"]], 1), CORNERS)
    assert set(table["edge_level0_px"].to_pylist()) == {63.5}
    np.testing.assert_array_equal(table["attention"], made.tiles.scores[0].weight_L)
    np.testing.assert_array_equal(table["head_0"], np.zeros(6))
    facts = json.loads((tmp_path / "explain.json").read_text())
    assert json.loads(table.schema.metadata[b"anlage"]).items() <= facts.items()
    assert [score["n_weighted"] for score in facts["scores"]] == [6, 0]
    assert facts["overlays"] == {"attention": {"downsample": 1, "mpp": 0.5, "png_downsample": 1}}


def test_no_contact_sheet_is_made_where_none_is_asked_for(tmp_path) -> None:
    slide = ArraySlide([tissue_like(320, 160)], mpp=0.5)
    written = write_slide_files(make(), tmp_path, slide=slide, n_shown=0)
    assert not written.shown
    assert not list(tmp_path.glob("tiles_*"))
    assert written.picture.shape == (160, 320, 3)


def test_files_of_an_earlier_run_that_this_one_does_not_write_go(tmp_path) -> None:
    write_slide_files(make(heads=[np.zeros(6)]), tmp_path, slide=None, n_shown=0)
    (tmp_path / "heads of mine.png").write_bytes(b"mine")
    (tmp_path / "explain.html").write_text("the page")
    written = write_slide_files(make(), tmp_path, slide=None, n_shown=0)
    assert "heads.png" not in written.files
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == sorted([*written.files, "explain.html", "heads of mine.png"])
    assert json.loads((tmp_path / "explain.json").read_text())["files"] == list(written.files)


@pytest.mark.parametrize(
    "told",
    [
        '{"format": "slide_explanation/1", "slide_id": "s", "files": ["../mine", "kept/x", 1, ""]}',
        '{"format": "explanation/1", "slide_id": "s", "files": ["mine"]}',
        '{"format": "slide_explanation/1", "slide_id": "s"}',
        *("[]", "not json"),
    ],
)
def test_only_files_that_an_earlier_run_names_go(tmp_path, told) -> None:
    folder = tmp_path / "out"
    (folder / "kept").mkdir(parents=True)
    mine = [folder / "kept" / "x", folder / "mine", tmp_path / "mine"]
    for path in mine:
        path.write_text("mine")
    (folder / "explain.json").write_text(told)
    write_slide_files(make(), folder, slide=None, n_shown=0)
    assert all(path.read_text() == "mine" for path in mine)


def test_a_folder_of_bags_is_refused(tmp_path) -> None:
    (tmp_path / "s.h5").write_bytes(b"a bag")
    with pytest.raises(AnlageError, match="holds bags. Name a folder of its own"):
        write_slide_files(make(), tmp_path, slide=None, n_shown=0)
    assert [path.name for path in tmp_path.iterdir()] == ["s.h5"]


def test_a_folder_of_another_slide_is_refused(tmp_path) -> None:
    write_slide_files(make(), tmp_path, slide=None, n_shown=0)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = replace(make(), tiles=replace(make().tiles, slide_id="t"), facts={"slide_id": "t"})
    with pytest.raises(AnlageError, match="holds files of slide 's'.*another folder for 't'"):
        write_slide_files(other, tmp_path, slide=None, n_shown=0)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_every_head_stands_in_its_place() -> None:
    first = [0.5, 0, 0, 0, 0, 0]
    tiles = make(heads=[first, first[::-1]]).tiles
    page = heads_sheet(tiles, None)
    bright = (page == colours_of(np.array(1.0))).all(axis=2)
    y = GAP_PX + CAPTION_PX + LINE_PX
    wanted = np.zeros_like(bright)
    wanted[y : y + 63, GAP_PX : GAP_PX + 63] = True  # pixels whose centre is within 63.5
    left = GAP_PX + 320 + GAP_PX + 128
    wanted[y + 64 : y + 127, left : left + 63] = True
    np.testing.assert_array_equal(bright, wanted)
    assert told_of(tiles.heads[0]) == "1 of 6 tiles hold 50%"
