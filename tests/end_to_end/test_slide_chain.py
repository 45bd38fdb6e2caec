"""The chain over slides: tiles, slide encoder, slide embeddings, slide model, where it looks."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from anlage import samples
from anlage.bags.store import list_bags, read_bag_header
from anlage.cli import app
from anlage.encoders.slide_encoder import load_slide_encoder
from anlage.encoders.slide_model_folder import load_slide_model
from anlage.report.contents import open_contents
from anlage.report.provenance_chain import provenance_chain
from anlage.training.finetuning.result import read_result

pytestmark = pytest.mark.slow

MALIGNANT = ("ICE1-WDNET-duodenum__HE", "PDAC-tru-cut__HE3", "hodgkin__HE")
OTHERS = ("erosion__HE", "helicobacterpylori__HE", "celiac-disease__HE")
FEW_STEPS = (
    *("epochs=4", "batch_size=2", "checkpoint_every=4", "optimizer.warmup_epochs=1"),
    *("model.width=16", "model.depth=2", "model.n_heads=2", "decoder.width=16", "decoder.depth=1"),
    *("decoder.n_heads=2", "held_out.share=0.2", "watch.every=4"),
)
FEW_EPOCHS = (
    *("epochs=2", "batch_size=2", "folds.n=3", "choice.keep=last", "choice.patience=null"),
    *("model.route=cls", "optimizer.layer_decay=0.9", "resamples=50", "task.target=group"),
    'task.classes=["benign","malignant"]',
)


class Chain(NamedTuple):
    """What the commands wrote."""

    slides: Path
    bags: Path
    run: Path
    table: Path
    tuned: Path
    explained: Path


def anlage(*arguments: str | Path) -> None:
    log = logging.getLogger("anlage")
    before, level = log.handlers, log.level
    ended = CliRunner().invoke(app, [str(argument) for argument in arguments])
    for handler in log.handlers:
        handler.close()
    log.handlers, log.level = before, level
    assert ended.exit_code == 0, (arguments, ended.output, ended.exception)


def settings(values: tuple[str, ...]) -> list[str]:
    return [word for value in values for word in ("--set", value)]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """Six bundled slides through every command, each on what the one before it wrote."""
    folder = tmp_path_factory.mktemp("chain")
    labels = folder / "labels.csv"
    rows = [f"{name},{name}-patient,malignant" for name in MALIGNANT]
    rows += [f"{name},{name}-patient,benign" for name in OTHERS]
    labels.write_text("\n".join(["slide_id,patient_id,group", *rows]) + "\n")
    names = ("slides.parquet", "bags", "slide_run", "slide_embeddings.parquet", "finetune", "look")
    made = Chain(*(folder / name for name in names))
    paths = [samples.slides_folder() / f"{name}.tiff" for name in (*MALIGNANT, *OTHERS)]
    anlage("index", *paths, "--labels", labels, "-o", made.slides)
    anlage(
        *("embed", "tiles", "--encoder", "anlage-tiny", "--slides", made.slides, "-o", made.bags)
    )
    anlage(
        *("pretrain", "slide", "--bags", made.bags, "--run", made.run, "--watch", made.slides),
        *settings(FEW_STEPS),
    )
    encoder = made.run / "encoder"
    anlage("embed", "slides", "--encoder", encoder, "--bags", made.bags, "-o", made.table)
    anlage(
        *("finetune", "--bags", made.bags, "--labels", labels, "--run", made.tuned),
        *("--slide-encoder", encoder, *settings(FEW_EPOCHS)),
    )
    anlage(
        *("explain-slide", "hodgkin__HE", "--model", made.tuned / "fold-0" / "model"),
        *("--bags", made.bags, "--slides", made.slides, "-o", made.explained),
    )
    return made


def record(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_every_stage_took_every_slide_of_the_one_before_it(chain: Chain) -> None:
    slides = {*MALIGNANT, *OTHERS}
    assert set(list_bags(chain.bags)) == slides
    run = record(chain.run / "run.json")
    assert {*run["slides"], *run["held_out"]} == slides
    assert set(pq.read_table(chain.table)["slide_id"].to_pylist()) == slides
    result = read_result(chain.tuned / "result.json")
    assert (result.n_slides, result.refused) == (6, [])
    tested = pq.read_table(chain.tuned / "predictions.parquet").to_pylist()
    assert sorted(row["slide_id"] for row in tested if row["side"] == "test") == sorted(slides)
    tiles = pq.read_table(chain.explained / "tiles.parquet")
    assert len(tiles) == len(read_bag_header(chain.bags / "hodgkin__HE.h5").coords)


def test_hashes_lead_from_the_slide_model_to_the_bags(chain: Chain) -> None:
    headers = {name: read_bag_header(place) for name, place in list_bags(chain.bags).items()}
    [tile_encoder] = {header.attributes.encoder_fingerprint for header in headers.values()}
    run = record(chain.run / "run.json")
    encoder = load_slide_encoder(chain.run / "encoder")
    model = load_slide_model(chain.tuned / "fold-0" / "model")

    assert encoder.config.tile_encoder.fingerprint == tile_encoder
    assert encoder.config.provenance["bags"] == run["bags"]
    for slide_id, checksum in run["slides"].items():
        assert headers[slide_id].content_sha256 == checksum
    assert model.config.tile_encoder.fingerprint == tile_encoder
    assert model.config.provenance["slide_encoder"] == encoder.fingerprint
    assert record(chain.tuned / "run.json")["slide_encoder"] == encoder.fingerprint
    assert read_result(chain.tuned / "result.json").data["slide_encoder"] == encoder.fingerprint

    about = json.loads(pq.read_schema(chain.table).metadata[b"anlage"])
    assert about["slide_encoder"]["fingerprint"] == encoder.fingerprint
    rows = pq.read_table(chain.table).to_pylist()
    assert {row["slide_id"]: row["bag_sha256"] for row in rows} == {
        name: header.content_sha256 for name, header in headers.items()
    }


def test_patients_of_pretraining_are_known_to_the_test_of_the_model(chain: Chain) -> None:
    """The slide encoder saw all but the held-out slides, and the result says so by name."""
    run = record(chain.run / "run.json")
    seen = sorted(f"{slide_id}-patient" for slide_id in run["slides"])
    leakage = read_result(chain.tuned / "result.json").leakage["slide encoder"]
    assert (leakage.is_known, leakage.seen) == (True, seen)


def test_the_report_finds_every_stage_and_every_hash_fits(chain: Chain) -> None:
    folder = chain.bags.parent
    anlage("report", folder)
    page = (folder / "report.html").read_text(encoding="utf-8")
    for section in ("slides", "slide-training", "slide-embeddings", "finetune-0", "provenance"):
        assert f'id="{section}"' in page
    links = provenance_chain(open_contents(folder))
    assert [link.title for link in links] == [
        *("6 slides", "Catalogue", "Tile embeddings", "Slide pretraining run", "Slide encoder"),
        *("Slide embeddings", "Fine-tuning"),
    ]
    checks = {check.text: check.holds for link in links for check in link.checks}
    assert all(checks.values()), checks
    assert {"began with this slide encoder", "were made by this slide encoder"} <= checks.keys()
