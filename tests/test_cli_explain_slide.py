"""The command that explains a slide, as a user types it: every file, its places, wrong usage."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
from markupsafe import escape
from PIL import Image
from slide_models import PLANTED, save_encoder, save_planted, slides_and_bags
from typer.testing import CliRunner

from anlage.bags.store import Bag, bag_place, read_bag, write_bag
from anlage.cli import app
from anlage.explain.slide_heat import colours_of
from anlage.slides.levels import read_tile

RUN = CliRunner()


@pytest.fixture
def planted(tmp_path: Path):
    catalogue, bags = slides_and_bags(tmp_path)
    save_planted(tmp_path / "model")
    return catalogue, bags, tmp_path / "model", tmp_path / "out"


def said(*arguments: object, code: int = 0) -> str:
    result = RUN.invoke(app, list(map(str, arguments)), catch_exceptions=code not in {0, 2})
    assert result.exit_code == code, result.output
    return result.output + (str(result.exception) if code == 1 else "")


def test_the_planted_tile_is_on_top_in_every_file(planted) -> None:
    catalogue, bags, model, out = planted
    told = said(
        *("explain-slide", "a", "--model", model, "--bags", bags, "--slides", catalogue.path),
        *("-o", out, "--top", 3),
    )
    assert told.endswith(f"6 files: {out}\npage: {out / 'explain.html'}\n")
    assert sorted(path.name for path in out.iterdir()) == [
        *("a.geojson", "explain.html", "explain.json", "overlay_attention.png"),
        *("overlay_attention.tiff", "tiles.parquet", "tiles_attention.png"),
    ]
    table = pq.read_table(out / "tiles.parquet")
    assert table.column_names == ["slide_id", "x", "y", "edge_level0_px", "attention"]
    attention = table["attention"].to_numpy()
    assert int(attention.argmax()) == PLANTED
    assert (table["x"][PLANTED].as_py(), table["y"][PLANTED].as_py()) == (224, 0)
    facts = json.loads(table.schema.metadata[b"anlage"])
    assert facts["format"] == "slide_explanation/1"

    feature = json.loads((out / "a.geojson").read_text())["features"][PLANTED]
    assert feature["geometry"]["coordinates"][0][2] == [256, 32]
    assert feature["properties"]["classification"]["name"] == "attention 80-100%"

    with catalogue.open_slide("a") as slide:
        pixels = read_tile(slide, 224, 0, size_px=32, mpp=1.0)
    overlay = tifffile.imread(out / "overlay_attention.tiff", key=0)
    mixed = 0.55 * colours_of(np.array(1.0)) + 0.45 * pixels
    assert np.abs(overlay[:32, 224:256] - mixed).max() <= 1
    assert overlay.shape == (192, 256, 3)
    told = json.loads((out / "explain.json").read_text())
    assert told["overlays"]["attention"]["downsample"] == 1
    sheet = np.asarray(Image.open(out / "tiles_attention.png"))
    top_tile = sheet[66 : 66 + 192, 8:200][::6, ::6]  # below its caption, six times as large
    np.testing.assert_array_equal(top_tile, pixels)

    for path in out.iterdir():
        assert str(model.parent).encode() not in path.read_bytes(), path.name
    page = (out / "explain.html").read_text()
    assert "probability yes" in page
    assert page.count("<figure>") == 6  # tiles
    assert page.count('class="over') == 1
    assert "<script" not in page
    assert "default-src 'none'" in page
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)


def test_without_the_slide_on_white_and_no_contact_sheet(planted, tmp_path) -> None:
    _, bags, _, out = planted
    save_encoder(tmp_path / "encoder")
    told = said(
        *("explain-slide", "a", "--model", tmp_path / "encoder", "--bags", bags, "-o", out),
        *("--layer", 1),
    )
    assert "6 files" in told
    assert not list(out.glob("tiles_*.png"))
    assert np.asarray(Image.open(out / "heads.png")).std() > 10
    overlay = tifffile.imread(out / "overlay_layer_01_mean.tiff", key=0)
    assert (overlay[:32, :32] == overlay[0, 0]).all()
    page = (out / "explain.html").read_text()
    assert page.count('class="over') == 1 + 2
    assert "show-scores" not in page
    assert "<b>head 1</b>" in page


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--top", "5"], "--top 5 needs pixels of the slide"),
        (["--layer", "1"], "needs a slide encoder to have a layer 1"),
        (["--layer", "0"], "greater than or equal to 1"),
        (["--top", "999"], "less than or equal to 200"),
    ],
)
def test_wrong_usage_is_two_and_says_what_is_right(planted, options, says) -> None:
    _, bags, model, out = planted
    command = ["explain-slide", "a", "--model", model, "--bags", bags, "-o", out, *options]
    assert says in " ".join(said(*command, code=2).split())
    assert not out.exists()


def test_a_name_of_odd_characters_names_its_files(planted) -> None:
    _, bags, model, out = planted
    odd = "a b#1%20?é'\"<i>&"
    bag = read_bag(bag_place(bags, "a"))
    write_bag(bag_place(bags, odd), Bag(odd, bag.features, bag.coords, bag.attributes))
    said("explain-slide", odd, "--model", model, "--bags", bags, "-o", out)
    assert len(json.loads((out / f"{odd}.geojson").read_text())["features"]) == 48
    page = (out / "explain.html").read_text()
    assert f"<code>{escape(odd)}.geojson</code>" in page
    told = said("explain-slide", "a", "--model", model, "--bags", bags, "-o", out, code=1)
    assert f"holds files of slide {odd!r}" in told


def test_a_slide_without_a_bag_leaves_nothing(planted) -> None:
    _, bags, model, out = planted
    told = said("explain-slide", "b", "--model", model, "--bags", bags, "-o", out, code=1)
    assert "has no bag of slide 'b'" in told
    assert not out.exists()
