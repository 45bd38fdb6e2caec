"""What the report says of slide encoder, slide embeddings and fine-tuning, against their files."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from slide_runs import micro_slide_config, write_bags, write_table

from anlage.bags.slide_labels import SlideLabels
from anlage.embedding.encode_slides import encode_slides
from anlage.encoders.slide_encoder import load_slide_encoder
from anlage.recipe import load_recipe
from anlage.report.contents import open_contents
from anlage.report.finetune_section import finetune_sections
from anlage.report.provenance_chain import provenance_chain
from anlage.report.slide_embeddings_section import slide_embeddings_section
from anlage.report.slide_training_section import held_out_errors, slide_training_section
from anlage.report.slide_verdicts import metric_name, slide_verdicts
from anlage.report.write import write_report
from anlage.training.finetuning.config import FinetuneConfig
from anlage.training.finetuning.finetune import finetune
from anlage.training.slide_pretraining.pretrain import pretrain_slides

pytestmark = pytest.mark.slow  # the folder takes seconds to make

FEW_EPOCHS = (
    *("epochs=3", "batch_size=4", "folds.n=2", "choice.patience=null", "resamples=30"),
    *("task.target=shifted", 'task.classes=["no","yes"]', "task.kind=binary"),
)
TITLES = ["Slide pretraining run", "Slide encoder", "Slide embeddings", "Fine-tuning"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bags of toy slides, a slide encoder, its embeddings, a model. Not to be changed: copy it."""
    folder = tmp_path_factory.mktemp("over_slides")
    bags, labels = write_bags(folder / "bags"), write_table(folder / "labels.csv")
    with labels.open("a", encoding="utf-8") as file:
        file.write("gone,p99,yes,train\n")
    run = pretrain_slides(
        micro_slide_config(),
        bags,
        folder / "slide_run",
        device="cpu",
        table=SlideLabels.open(labels),
    )
    encode_slides(
        load_slide_encoder(run.encoder), bags, folder / "slide_embeddings.parquet", patients=labels
    )
    recipe = load_recipe("abmil", FinetuneConfig, overrides=FEW_EPOCHS)
    finetune(recipe, bags, labels, folder / "finetune", device="cpu")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


def broken(folder: Path) -> list[tuple[str, str]]:
    chain = provenance_chain(open_contents(folder))
    return [(link.title, c.text) for link in chain for c in link.checks if c.holds is False]


def test_curves_and_words_are_those_of_the_metrics(made: Path) -> None:
    contents = open_contents(made)
    section = slide_training_section(contents)
    rows = [json.loads(line) for line in (made / "slide_run" / "metrics.jsonl").open()]
    last = [row for row in rows if "held_out_loss" in row][-1]
    wanted = tuple(last[f"held_out_{name}"] for name in ("loss", "mean_floor", "copy_floor"))
    assert held_out_errors(contents.over_slides) == wanted
    held_out = next(c for c in section.charts if c.title == "Error on held-out slides")
    drawn = {line["name"]: line["values"] for line in json.loads(held_out.data)["lines"]}
    assert list(drawn) == ["slide encoder", "mean of the visible tiles", "nearest visible tile"]
    assert float(drawn["slide encoder"][-1]) == pytest.approx(wanted[0], rel=0.005)
    run = json.loads((made / "slide_run" / "run.json").read_text())
    assert f"{len(rows)} steps on bags of {run['n_slides']} slides" in section.summary
    facts = dict(section.facts)
    assert facts["Hidden"] == "75% of the tiles"
    assert facts["Batch"] == "4 slides, 3 epochs"


def test_an_encoder_above_its_floors_is_not_praised(folder: Path) -> None:
    path = folder / "slide_run" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.open()]
    for loss, kind in ((0.1, "plain"), (9.0, "care")):
        said = [{**row, "held_out_loss": loss} if "held_out_loss" in row else row for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in said))
        verdict = next(iter(slide_verdicts(open_contents(folder))))
        assert verdict.kind == kind
        assert ("is below both floors" in verdict.text) == (loss == 0.1)


def test_nearest_slides_are_of_other_patients(made: Path) -> None:
    section = slide_embeddings_section(open_contents(made))
    table = pq.read_table(made / "slide_embeddings.parquet").to_pylist()
    vectors = np.array([row["embedding"] for row in table], dtype=np.float64)
    vectors -= vectors.mean(axis=0)
    patient = {row["slide_id"]: row["patient_id"] for row in table}
    assert section.n_slides == len(section.rows) == len(table) == 10
    for row, ours, vector in zip(section.rows, table, vectors, strict=True):
        cosines = {
            other["slide_id"]: float(vector @ v / np.linalg.norm(vector) / np.linalg.norm(v))
            for other, v in zip(table, vectors, strict=True)
            if other["patient_id"] != ours["patient_id"]
        }
        assert (row.slide_id, row.n_tiles) == (ours["slide_id"], ours["n_tiles"])
        assert row.nearest == max(cosines, key=cosines.__getitem__)
        assert row.similarity == pytest.approx(cosines[row.nearest], abs=1e-9)
        assert patient[row.nearest] != ours["patient_id"]


def test_tables_hold_the_numbers_of_the_result(made: Path) -> None:
    [section] = finetune_sections(open_contents(made))
    result = json.loads((made / "finetune" / "result.json").read_text())
    first = section.tables[0]
    assert first.is_first
    scores = [s for s in result["scores"] if s["metric"] == result["scores"][0]["metric"]]
    for row, score in zip(first.rows, scores, strict=True):
        found = score["mean_of_folds"]
        assert row.estimate == f"{found['value']:.3f}"
        assert row.bootstrap == f"{found['low']:.3f} to {found['high']:.3f}"
        assert row.is_ours == (score["predictor"] == "model")
    assert [fold.name for fold in section.folds] == [fold["name"] for fold in result["folds"]]
    assert section.folds[0].values[0] == f"{scores[0]['of_fold'][section.folds[0].name]:.3f}"
    assert section.dropped == (("gone", "has no bag"),)
    assert list(section.notes) == result["notes"]
    assert json.loads(section.chart.data)["x"] == [1, 2, 3]


def test_open_intervals_and_scores_without_a_value_are_shown_as_such(
    folder: Path, take_apart
) -> None:
    path = folder / "finetune" / "result.json"
    result = json.loads(path.read_text())
    result["scores"][0]["mean_of_folds"] |= {"low": None, "t_high": None}
    result["scores"][1]["mean_of_folds"] = None
    path.write_text(json.dumps(result))
    [section] = finetune_sections(open_contents(folder))
    open_row, without, *_ = section.tables[0].rows
    assert open_row.bootstrap.startswith("no bound to ")
    assert open_row.t.endswith(" to no bound")
    ticks = [tick.at for tick in section.tables[0].axis.ticks]
    assert (open_row.bar.low, open_row.bar.t_high) == (ticks[0], ticks[-1])
    assert (without.estimate, without.bar) == ("no value", None)
    assert "no value" in take_apart(write_report(folder)).text


def changed_result(folder: Path, **changes: object) -> None:
    path = folder / "finetune" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_encoder_that_tested_labels_chose_is_told_so(folder: Path) -> None:
    leakage = {"is_known": True, "n_groups": 9, "seen": ["p1", "p2"], "chosen_by": ["p2"]}
    changed_result(folder, leakage={"slide encoder": leakage})
    texts = [verdict.text for verdict in slide_verdicts(open_contents(folder))]
    told = "2 of 9 tested patients were seen before, and the labels of 1 chose the slide encoder."
    assert told in texts
    assert not any("without labels" in text for text in texts)


def test_sides_are_of_patients_only_where_patients_are_known(folder: Path) -> None:
    [section] = finetune_sections(open_contents(folder))
    assert "No patient is on two sides of a fold" in section.task
    changed_result(folder, n_without_patient=3)
    [section] = finetune_sections(open_contents(folder))
    assert "No patient is on two sides" not in section.task
    assert "the patients of 3 slides are not known" in section.task


def test_a_run_without_a_result_says_so(folder: Path) -> None:
    (folder / "finetune" / "result.json").unlink()
    [section] = finetune_sections(open_contents(folder))
    assert "Not finished" in section.task
    assert "not finished" in [v.text for v in slide_verdicts(open_contents(folder))][-1]


def test_links_over_slides_hold(made: Path) -> None:
    chain = {link.title: link for link in provenance_chain(open_contents(made))}
    assert [title for title in chain if title in TITLES] == TITLES
    for title in TITLES:
        assert chain[title].checks
        assert all(check.holds for check in chain[title].checks), chain[title]


def test_a_bag_that_changed_breaks_what_was_made_of_it(folder: Path) -> None:
    run = json.loads((folder / "slide_run" / "run.json").read_text())
    name = sorted(run["slides"])[0]
    with h5py.File(folder / "bags" / f"{name}.h5", "r+") as file:
        file.attrs["content_sha256"] = "0" * 64
    titles = [title for title, text in broken(folder) if f"not so: {name}" in text]
    assert titles == ["Tile embeddings", "Slide pretraining run", "Slide embeddings"]


def test_another_slide_encoder_in_its_place(folder: Path) -> None:
    path = folder / "slide_run" / "encoder" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"pooling": "mean"}))
    assert ("Slide embeddings", "were made by this slide encoder") in broken(folder)


def test_a_model_of_another_run_and_other_folds(folder: Path) -> None:
    path = folder / "finetune" / "fold-1" / "model" / "config.json"
    config = json.loads(path.read_text())
    config["provenance"]["bags"] = "0" * 64
    path.write_text(json.dumps(config))
    with (folder / "finetune" / "splits.csv").open("a") as file:
        file.write("x,train,test\n")
    assert broken(folder) == [
        ("Fine-tuning", "1 of 2 models are whole and of this run; not so: fold-1"),
        ("Fine-tuning", "splits.csv hashes to what the run recorded"),
    ]


@pytest.mark.parametrize(
    ("part", "ids"),
    [
        ("slide_run", {"slide-training", "provenance"}),
        ("finetune", {"finetune-0", "provenance"}),
        ("slide_run/encoder", {"provenance"}),
        (".", {"slide-training", "slide-embeddings", "finetune-0", "provenance"}),
    ],
)
def test_one_stage_alone_and_all_together(folder: Path, take_apart, part: str, ids: set) -> None:
    page = take_apart(write_report(folder / part))
    every = {"slides", "training", "scores", "slide-training", "slide-embeddings", "finetune-0"}
    assert page.ids & {*every, "provenance"} == ids
    assert "Cannot be read" not in page.text
    assert str(folder) not in page.text
    assert ("Not in this folder" in page.text) == (part == ".")  # the bags' own chain


def test_damaged_parts_are_named(folder: Path) -> None:
    (folder / "slide_embeddings.parquet").write_bytes(b"PAR1")
    (folder / "finetune" / "result.json").write_text("{}")
    weights = folder / "slide_run" / "encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\1\1")
    problems = open_contents(folder).problems
    assert [re.match(r"[^:]*", line)[0] for line in problems] == [
        "slide encoder",
        "slide_embeddings.parquet",
        "finetune/result.json",
    ]


@pytest.mark.parametrize(
    ("name", "told"),
    [("auroc_macro", "AUROC macro"), ("balanced_accuracy", "Balanced accuracy"), ("r2", "R2")],
)
def test_metrics_are_called_as_readers_do(name: str, told: str) -> None:
    assert metric_name(name) == told
