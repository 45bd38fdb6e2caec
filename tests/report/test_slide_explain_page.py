"""One page, whole in itself: each score once, names escaped, what was not made left out."""

import re
from dataclasses import replace

import numpy as np
import pytest
from scored_tiles import scored
from synthetic_slides import ArraySlide, tissue_like

from anlage.explain.slide_explanation import SlideExplanation
from anlage.explain.slide_files import write_slide_files
from anlage.report.slide_explain_page import write_slide_explain_page


@pytest.fixture
def explanation():
    corners = [[x, y] for y in (0, 64, 128) for x in (0, 64, 128, 192)]
    weights = np.arange(12) / 66
    return SlideExplanation(
        tiles=replace(scored(corners, weights, heads=[weights, weights[::-1]]), slide_id="<b>s"),
        model="<i>model",
        encoder="tiny",
        prediction=(("probability_<u>luad", 0.123456),),
        notes=("A note & more.",),
        facts={"format": "slide_explanation/1", "model_fingerprint": "0123456789abcdef" * 4},
    )


def written_page(explanation, folder, slide, n_shown):
    written = write_slide_files(explanation, folder, slide=slide, n_shown=n_shown)
    return write_slide_explain_page(explanation, written, folder / "page.html").read_text()


def test_everything_is_told_and_names_are_escaped(explanation, tmp_path) -> None:
    slide = ArraySlide([tissue_like(500, 390)], mpp=0.5)
    page = written_page(explanation, tmp_path, slide, 3)
    assert page.count('class="over') == 1 + 2
    assert page.count('alt="Tile') == 6
    for told in ("12 tiles of 32 µm", "0.123", "A note &amp; more.", "11 of 12 tiles hold 100%"):
        assert told in page
    assert "1 tiles have none and are grey" in page
    for raw in ("<b>s", "<i>model", "<u>luad", "<script"):
        assert raw not in page
    assert "default-src 'none'" in page
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert "0.167</b> 100.0%<br>192, 128" in page


def test_parts_that_were_not_made_are_left_out(explanation, tmp_path) -> None:
    alone = replace(
        explanation,
        tiles=replace(explanation.tiles, scores=explanation.tiles.main, slide_id="s"),
        prediction=(),
        notes=(),
    )
    page = written_page(alone, tmp_path, None, 3)
    for part in ('id="heads"', 'class="figures"', 'class="verdicts"', "show-scores", "Most weight"):
        assert part not in page
    assert 'id="score-attention"' in page


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ("/home/dr who/runs/fold-0/model", "model"),
        ("/home/dr who/runs/model/", "model"),
        ("runs/of dr who/model", "model"),
        (r"C:\dr who\model", "model"),
        ("/home/dr who/lr=1/model", "lr=model"),
        ("prov-gigapath-slide", "prov-gigapath-slide"),
        ("prov-gigapath-slide=/home/dr who/slide.pth", "prov-gigapath-slide=slide.pth"),
    ],
)
def test_a_page_travels_without_folders_of_this_machine(
    explanation, tmp_path, model, shown
) -> None:
    moved = replace(
        explanation, model=model, tiles=replace(explanation.tiles, slide_id="s"), prediction=()
    )
    page = written_page(moved, tmp_path, None, 0)
    assert f">{shown} (0123456789ab) on slide s: 12 tiles" in page
    for path in tmp_path.iterdir():
        assert b"dr who" not in path.read_bytes(), path.name
