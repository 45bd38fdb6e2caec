"""The command that curates, as a user types it, up to a training step on its list."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from some_bags import make_bag
from typer.testing import CliRunner

from anlage import samples
from anlage.bags.store import Bag, write_bag
from anlage.cli import app
from anlage.errors import AnlageError, BagError, CatalogueError
from anlage.slides.catalogue import Catalogue
from anlage.slides.indexing.index import index_slides
from anlage.tiles.tile_list import read_tile_list
from anlage.training.log import read_metrics
from anlage.training.tile_pretrain import pretrain_tiles
from micro_recipe import micro_config

RUN = CliRunner()
SLIDES = ("glycogenstorage__HE", "helicobacterpylori__HE", "hodgkin__HE", "erosion__HE")


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    output = tmp_path_factory.mktemp("curate") / "slides.parquet"
    paths: list[Path | str] = [samples.slides_folder() / f"{name}.tiff" for name in SLIDES]
    result = index_slides(paths, output, labels=samples.slides_labels())
    assert result.catalogue is not None
    return result.catalogue


@pytest.fixture
def bags(catalogue: Catalogue, tmp_path: Path) -> Path:
    """Random embeddings of 40 tiles of 48 px at 1 mpp of each slide."""
    for number, row in enumerate(catalogue.rows()):
        made = make_bag(
            *(row.slide_id, 40),
            seed=number,
            **{"mpp": 1.0, "tile_px": 48, "slide_mpp": row.mpp},
            slide_fingerprint=row.fingerprint,
        )
        step = int(48 / row.mpp) + 1
        x, y = np.divmod(np.arange(40), 4)
        corners = np.stack([x * 9, y * step % (row.height - step)], axis=1)
        write_bag(
            tmp_path / "bags" / f"{row.slide_id}.h5",
            Bag(row.slide_id, made.features, corners, made.attributes),
        )
    return tmp_path / "bags"


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Close the log that a command opened."""
    log = logging.getLogger("anlage")
    handlers, level = log.handlers, log.level
    yield
    close_log(kept=handlers)
    log.handlers, log.level = handlers, level


def close_log(kept: Sequence[logging.Handler] = ()) -> None:
    log = logging.getLogger("anlage")
    for handler in log.handlers:
        if handler not in kept:
            handler.close()
    log.handlers = list(kept)


def said(*arguments: object, code: int = 0) -> str:
    result = RUN.invoke(app, ["curate", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


def test_from_bags_to_training(bags: Path, catalogue: Catalogue, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = (bags, "--slides", catalogue.path, "-o", out, "--split", "train")
    told = said(*command, "--levels", "6,3", "--sample", 24, "--dedup", 0.99, "--tissue-colour", 0)
    for line in ("120 tiles in the pool", "120 tiles after filters", "24 tiles listed"):
        assert f"{line}\n" in told
    assert f"3 contact sheets: {out / 'clusters'}\n" in told
    assert sorted(path.name for path in out.iterdir()) == [
        *("anlage.log", "clusters", "curation.html", "curation.json", "tiles.parquet"),
    ]
    assert json.loads((out / "curation.json").read_text())["settings"]["levels"] == [6, 3]
    tiles = read_tile_list(out / "tiles.parquet")
    assert (len(tiles), set(tiles.weight_N)) == (24, {1.0})
    assert set(tiles.slide_ids) == set(SLIDES) - {"erosion__HE"}
    config = micro_config(
        f"tiles.list={out / 'tiles.parquet'}", "tiles.magnifications={1.0: 1}", "steps=2"
    )
    pretrain_tiles(config, catalogue.select(split="train"), tmp_path / "run", device="cpu")
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) >= 2


def test_bags_left_out_end_with_code_3(bags: Path, catalogue: Catalogue, tmp_path: Path) -> None:
    write_bag(bags / "stranger.h5", make_bag("stranger", 5, mpp=1.0, tile_px=48))
    (bags / "hodgkin__HE.h5").write_bytes(b"torn")
    told = said(
        *(bags, "--slides", catalogue.path, "-o", tmp_path / "out", "--levels", "none"), code=3
    )
    assert "slide 'stranger' is not in the catalogue" in told
    assert "hodgkin__HE.h5: " in told
    assert "120 tiles listed" in told


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--levels", "6;3"], "--levels needs whole numbers such as 200,20"),
        (["--levels", "3,6"], "falling numbers of clusters"),
        (["--levels", "161"], "as many tiles as clusters; got 160 for 161"),
        (["--sample", "161"], "at most the 160 tiles"),
        (["--dedup", "1.5"], "a cosine above 0, at most 1"),
        (["--pen", "1.5"], "--pen"),
    ],
)
def test_wrong_usage_is_told(bags, catalogue, tmp_path, options, says) -> None:
    told = said(bags, "--slides", catalogue.path, "-o", tmp_path / "out", *options, code=2)
    assert says in " ".join(told.replace("│", " ").split())


def test_what_cannot_be_done_is_told(bags, catalogue, tmp_path) -> None:
    command = (bags, "--slides", catalogue.path, "-o", tmp_path / "out", "--levels", "none")
    said(*command)
    close_log()
    with pytest.raises(CatalogueError, match="is there already"):
        said(*command)
    with pytest.raises(BagError, match="no such folder of bags"):
        said(tmp_path / "none", "--slides", catalogue.path, "-o", tmp_path / "x")


def test_a_folder_that_cannot_be_made_ends_before_the_work(bags, catalogue, tmp_path) -> None:
    (tmp_path / "file").write_text("here first")
    with pytest.raises(OSError, match="file"):
        said(bags, "--slides", catalogue.path, "-o", tmp_path / "file" / "out")


def test_without_faiss_the_remedy_is_told(bags, catalogue, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(AnlageError, match=r"pip install 'anlage\[curation\]'"):
        said(bags, "--slides", catalogue.path, "-o", tmp_path / "out")
