"""One small folder of the whole chain: two bundled slides, a micro network, real functions."""

from __future__ import annotations

import csv
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from anlage import samples
from anlage.embedding.embed_tiles import embed_tiles
from anlage.evaluation.evaluate import evaluate_encoder
from anlage.slides.indexing.index import index_slides
from anlage.training.tile_pretrain import pretrain_tiles
from micro_recipe import micro_config

SLIDES = ("hodgkin__HE", "erosion__HE", "liver-hemangioma__HE")
TILES_A_CASE = 4


def _few_tiles(folder: Path) -> Path:
    """A CSV of six cases of two classes, four tiles each, from the bundled organ task."""
    bundled = samples.organ_tiles()
    rows = list(csv.DictReader(bundled.open(encoding="utf-8")))
    kept: list[dict[str, str]] = []
    for label in ("colon", "liver"):
        cases = sorted({row["case"] for row in rows if row["label"] == label})[:3]
        for case in cases:
            kept += [row for row in rows if row["case"] == case][:TILES_A_CASE]
    path = folder / "few.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["file", "label", "case", "mpp"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(row | {"file": str(bundled.parent / row["file"])} for row in kept)
    return path


@pytest.fixture(scope="session")
def made_chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny demo, as the functions write it. Not to be changed: copy it."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "no_slide.tiff").write_bytes(b"not a slide")
    paths: list[str | Path] = [samples.slides_folder() / f"{name}.tiff" for name in SLIDES]
    catalogue = index_slides(
        [*paths, folder / "no_slide.tiff"],
        folder / "slides.parquet",
        labels=samples.slides_labels(),
    ).catalogue
    assert catalogue is not None
    config = micro_config("steps=3")
    run = pretrain_tiles(config, catalogue, folder / "run", device="cpu")
    embed_tiles(run.encoder, catalogue, folder / "bags", stride_px=96)
    evaluate_encoder(run.encoder, _few_tiles(folder), folder / "scores", n_resamples=50, k=3)
    (folder / "demo.json").write_text(json.dumps({"version": "0", "seed": 0, "slides": ["/a/b"]}))
    return folder


@pytest.fixture
def chain(made_chain: Path, tmp_path: Path) -> Path:
    """A copy of the folder that a test may change."""
    copied = tmp_path / "demo"
    shutil.copytree(made_chain, copied)
    return copied


class Page(HTMLParser):
    """A page taken apart: its ids, the text of it, and everything that a browser would load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.loads: list[str] = []
        self.n_scripts, self.handlers, self.text, self.styles = 0, [], "", ""
        self.images_without_words: list[str] = []
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self._inside = tag
        self.n_scripts += tag == "script"
        self.ids |= {given["id"]} if given.get("id") else set()
        self.loads += [given[n] for n in ("src", "href", "action", "srcset", "poster", "data")
                       if given.get(n)]  # fmt: skip
        self.handlers += [name for name in given if name.startswith("on")]
        self.styles += given.get("style") or ""
        if tag == "img" and not given.get("alt"):
            self.images_without_words.append(tag)

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "style":
            self.styles += data
        elif self._inside != "script":
            self.text += data


@pytest.fixture(scope="session")
def take_apart():
    return lambda path: Page(path.read_text(encoding="utf-8"))
