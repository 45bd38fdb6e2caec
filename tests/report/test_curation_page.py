"""The page of a curated pool holds its numbers and pictures, and nothing from elsewhere."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
from some_bags import ATTRIBUTES

from anlage.curation.contact_sheet import ClusterLook
from anlage.curation.curate import Curation
from anlage.curation.pool import TilePool
from anlage.report.curation_page import write_curation_page

NASTY = "<img src=x onerror=alert(1)>"


def a_curation() -> Curation:
    pool = TilePool(
        slide_ids=("a", NASTY),
        slide_N=np.array([0, 0, 1]),
        corner_N2=np.zeros((3, 2), dtype=np.int64),
        feature_ND=np.ones((3, 4), dtype=np.float16),
        made=replace(ATTRIBUTES, encoder_name="uni"),
        bag_sha256=("0", "1"),
    )
    return Curation(
        Path("tiles.parquet"),
        pool,
        np.array([[0], [0], [1]]),
        np.array([0, 2]),
        np.ones(2),
        {"in the pool": 12345, "listed": 2},
        rejected={"pen": 4},
        refused=[(NASTY, "is no slide")],
        empty=("d",),
    )


def a_look(number: int) -> ClusterLook:
    return ClusterLook(
        number=number,
        n_tiles=200,
        n_finest=3,
        n_listed=50,
        share=0.25,
        n_slides=7,
        slides=((NASTY, 150), ("b", 30)),
        labels={"tissue": (("colon", 180),)},
        thumbnails=tuple(np.zeros((96, 96, 3), np.uint8) for _ in range(3)),
    )


def test_the_page_says_it_all(tmp_path: Path) -> None:
    page = write_curation_page(
        a_curation(), [a_look(4), a_look(9)], tmp_path / "page.html", n_clusters=5
    )
    text = page.read_text(encoding="utf-8")
    for said in (
        "2 tiles of 2 slides, 112 µm wide at 0.5 µm per pixel",
        "of encoder uni eeeeeeeeeeee",
        "12,345",
        "4 tiles rejected by the filter pen",
        "1 slides without tiles: d",
        "The 2 largest of 5",
        "Cluster 9 <span>25.0% of the draws",
        "200 in the pool, 50 listed; 3 finest clusters",
        "75%, b 15%, ...",
        "<dt>tissue</dt><dd>colon 90%</dd>",
    ):
        assert said in text, said
    assert NASTY not in text
    assert text.count("data:image/jpeg;base64,") == 2
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", text)
