"""A whole fine-tuning run: folds, result, floors, resume, and what bad input gets."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from marked_bags import (
    MADE,
    WIDTH,
    MarkedSlides,
    mark_of_class,
    marked_bag,
    two_classes,
    write_marked,
)

from anlage.bags.loader import BagSet
from anlage.bags.store import Bag, bag_place, read_bag_header, write_bag
from anlage.encoders.slide_encoder import (
    SlideEncoderConfig,
    TileEncoderFacts,
    save_slide_encoder,
)
from anlage.encoders.slide_model_folder import load_slide_model
from anlage.errors import BagError, CatalogueError, CheckpointError, RecipeError
from anlage.models.slide_encoder import SlideEncoder
from anlage.probes.splits.tables import parse_split_table
from anlage.recipe import load_recipe
from anlage.training.finetuning import finetune as finetune_module
from anlage.training.finetuning.config import FinetuneConfig
from anlage.training.finetuning.finetune import FinetuneEnd, finetune
from anlage.training.finetuning.plan import plan_lines
from anlage.training.finetuning.preparation import prepare
from anlage.training.finetuning.result import read_result

POOLING = "model.pooling={kind: abmil, width: 16, hidden: 8, input_dropout: 0.0, dropout: 0.0}"
QUICK = (
    *("batch_size=8", "epochs=10", "precision=fp32", "folds.n=3", "resamples=200", POOLING),
    *("optimizer.peak_lr=0.02", "task.positive=mutated", "choice={patience: 4}"),
)


def config_of(*overrides: str) -> FinetuneConfig:
    return load_recipe("abmil", FinetuneConfig, overrides=(*QUICK, *overrides))


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> MarkedSlides:
    rows = two_classes(20, slides_each=2)
    return write_marked(tmp_path_factory.mktemp("marked"), rows, mark_of_class)


@pytest.fixture(scope="module")
def finished(slides: MarkedSlides, tmp_path_factory: pytest.TempPathFactory) -> FinetuneEnd:
    return finetune(config_of(), slides.bags, slides.labels, tmp_path_factory.mktemp("r") / "run")


def copied(slides: MarkedSlides, folder: Path) -> MarkedSlides:
    shutil.copytree(slides.bags, folder / "bags")
    shutil.copy(slides.labels, folder / "labels.csv")
    return MarkedSlides(folder / "bags", folder / "labels.csv")


def test_what_one_tile_says_is_found_on_patients_never_seen(finished) -> None:
    result = finished.result
    assert (result.n_slides, result.n_patients, len(result.folds)) == (40, 20, 3)
    found = result.score("auroc").mean_of_folds
    assert found.value > 0.9
    assert found.low > 0.5
    assert (found.n_patients, found.is_unreliable) == (20, False)
    assert result.score("auroc", predictor="prior").mean_of_folds.value == 0.5
    assert result.score("balanced_accuracy", predictor="prior").mean_of_folds.value == 0.5
    assert result.classes == {"wild": 20, "mutated": 20}


def test_no_patient_is_on_two_sides_and_each_is_tested_once(finished) -> None:
    table = pq.read_table(finished.run_dir / "predictions.parquet").to_pylist()
    tested = [row["slide_id"] for row in table if row["side"] == "test"]
    assert len(tested) == len(set(tested)) == 40
    for number in range(3):
        rows = [row for row in table if row["fold"] == str(number)]
        test = {row["patient_id"] for row in rows if row["side"] == "test"}
        validation = {row["patient_id"] for row in rows if row["side"] == "val"}
        model = load_slide_model(finished.run_dir / f"fold-{number}/model")
        trained = set(model.config.provenance["trained_on"])
        assert len(test | validation | trained) == len(test) + len(validation) + len(trained) == 20


def test_result_and_splits_are_stored(finished) -> None:
    assert read_result(finished.run_dir / "result.json") == finished.result
    table = parse_split_table((finished.run_dir / "splits.csv").read_text())
    assert table.sha256 == finished.result.data["splits"]
    card = (finished.run_dir / "card.md").read_text()
    assert all(line in card for line in finished.result.summary())


def test_the_reader_is_told_of_patients_leakage_and_floors(finished) -> None:
    lines = finished.result.summary()
    assert lines[:2] == [
        "binary: label",
        "40 slides of 20 patients (20 wild, 20 mutated); 3 folds",
    ]
    assert lines[2].startswith("auroc, model: ")
    assert "20 patients" in lines[2]
    assert lines[3].startswith("auroc, linear probe on the mean tile: ")
    assert any("tile encoder saw these patients in pretraining is not known" in x for x in lines)
    assert any("a linear probe on the mean tile: " in line for line in lines)


def test_shuffled_labels_are_not_learned(slides, tmp_path) -> None:
    rows = two_classes(20, slides_each=2)
    label = np.random.default_rng(1).permutation([row["label"] for row in rows[::2]])
    shuffled = [row | {"label": label[number // 2]} for number, row in enumerate(rows)]
    lines = ["slide_id,patient_id,label", *(",".join(map(str, r.values())) for r in shuffled)]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    end = finetune(config_of(), slides.bags, tmp_path / "labels.csv", tmp_path / "run")
    found = end.result.score("auroc").mean_of_folds
    assert found.low < 0.5 < found.high or found.value < 0.5


def files_of(run: Path) -> dict[str, bytes]:
    names = ["result.json", "card.md", "splits.csv", "predictions.parquet"]
    for number in range(3):
        names += [f"fold-{number}/{name}" for name in ("fold.json", "metrics.jsonl")]
        names.append(f"fold-{number}/model/model.safetensors")
    found = {name: (run / name).read_bytes() for name in names}
    result = json.loads(found["result.json"]) | {"commit": None}  # files may change between runs
    return found | {"result.json": json.dumps(result).encode()}


def test_a_finished_run_is_left_as_it_is(finished, slides, tmp_path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished.run_dir, run)
    times = {path: path.stat().st_mtime_ns for path in run.glob("fold-*/**/*")}
    finetune(config_of(), slides.bags, slides.labels, run, resume=True)
    assert {path: path.stat().st_mtime_ns for path in run.glob("fold-*/**/*")} == times
    assert files_of(run) == files_of(finished.run_dir)


def test_lost_folds_come_out_as_they_were(finished, slides, tmp_path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished.run_dir, run)
    shutil.rmtree(run / "fold-1")
    (run / "fold-2/fold.json").unlink()  # it was killed while it predicted
    (run / "result.json").unlink()
    finetune(config_of(), slides.bags, slides.labels, run, resume=True)
    assert files_of(run) == files_of(finished.run_dir)


KILLED = """
import sys
sys.path[:0] = {paths!r}
from test_finetune import config_of
from anlage.training.finetuning.finetune import finetune
finetune(config_of(), {bags!r}, {labels!r}, {run!r}, resume=True)
"""


@pytest.mark.slow
def test_kill_9_in_a_fold_and_going_on_gives_the_same_bits(finished, slides, tmp_path) -> None:
    run = tmp_path / "run"
    here = Path(__file__).parent
    told = KILLED.format(
        paths=[str(here), str(here.parents[1])],
        **{"bags": str(slides.bags), "labels": str(slides.labels), "run": str(run)},
    )
    process = subprocess.Popen([sys.executable, "-c", told], cwd=here)
    metrics = run / "fold-1/metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") > 7):
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (run / "fold-1/fold.json").exists()
    done = (run / "fold-0/fold.json").stat().st_mtime_ns
    finetune(config_of(), slides.bags, slides.labels, run, resume=True)
    assert (run / "fold-0/fold.json").stat().st_mtime_ns == done
    assert files_of(run) == files_of(finished.run_dir)


def test_another_run_is_not_gone_on_with(finished, slides, tmp_path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished.run_dir, run)
    go = {"bags": slides.bags, "labels": slides.labels, "run_dir": run}
    with pytest.raises(CheckpointError, match="holds a run already. Add --resume"):
        finetune(config_of(), **go)
    with pytest.raises(CheckpointError, match="epochs was 10, is now 11"):
        finetune(config_of("epochs=11"), **go, resume=True)
    other = tmp_path / "labels.csv"
    other.write_text(slides.labels.read_text().replace("wild", "none"))
    with pytest.raises(CheckpointError, match="needs the labels it began with"):
        finetune(config_of(), slides.bags, other, run, resume=True)


def test_bags_that_cannot_be_used_are_named_and_counted(slides, tmp_path) -> None:
    bad = copied(slides, tmp_path)
    (bad.bags / "slide 000 0.h5").write_bytes(b"no bag")
    (bad.bags / "slide 001 0.h5").unlink()
    empty = Bag("slide 002 0", np.empty((0, WIDTH), np.float16), np.empty((0, 2), np.int64), MADE)
    write_bag(bag_place(bad.bags, "slide 002 0"), empty)
    with h5py.File(bad.bags / "slide 003 0.h5", "r+") as file:
        file["features"][0, 0] = 3.0  # which its checksum alone tells
    with bad.labels.open("a") as file:
        file.write("slide 004 9,patient 004,\n")
    write_bag(bag_place(bad.bags, "unknown"), marked_bag("unknown", [1, 1], n_tiles=4, seed=1))
    end = finetune(config_of("epochs=2"), bad.bags, bad.labels, tmp_path / "run")
    reasons = {slide.slide_id: slide.reason for slide in end.refused}
    assert reasons["slide 001 0"] == reasons["slide 004 9"] == "has no bag"
    assert reasons["slide 002 0"] == "its bag holds no tile"
    assert set(reasons) == {f"slide 00{n} {s}" for n, s in ((0, 0), (1, 0), (2, 0), (3, 0), (4, 9))}
    assert end.result.n_slides == 36
    assert end.result.passed_over == {"with a bag and without a row in the labels": 1}
    assert "note: 5 labelled slides had no usable bag: left out." in end.result.summary()


def test_bags_of_two_encoders_are_refused(slides, tmp_path) -> None:
    bad = copied(slides, tmp_path)
    bag = marked_bag("slide 000 0", [1, 1], n_tiles=4, seed=1)
    other = replace(bag.attributes, encoder_fingerprint="f" * 64)
    write_bag(bag_place(bad.bags, bag.slide_id), Bag(bag.slide_id, bag.features, bag.coords, other))
    with pytest.raises(BagError, match="was made with encoder_fingerprint"):
        finetune(config_of(), bad.bags, bad.labels, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_wrong_labels_are_refused_before_anything_is_written(slides, tmp_path) -> None:
    with pytest.raises(CatalogueError, match="needs a column 'lable'"):
        finetune(config_of("task.target=lable"), slides.bags, slides.labels, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "error", "told"),
    [
        (
            ("model={slide_encoder: {size: tiny}, pooling: null, route: cls, layers: [5]}",),
            RecipeError,
            "layers from 0",
        ),
        (("folds.n=21",), CatalogueError, "n_folds needs to be 2 to 20"),
        (
            ("task={kind: survival_discrete, target: null, positive: null, time: t, event: e}",),
            CatalogueError,
            "fold 0: survival_bins: needs 4 or more events",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_bags_are_read(
    overrides, error, told, slides, tmp_path, monkeypatch
) -> None:
    rows = two_classes(20, slides_each=2)
    lines = [
        f"{r['slide_id']},{r['patient_id']},{r['label']},1,{k % 2}" for k, r in enumerate(rows)
    ]
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(["slide_id,patient_id,label,t,e", *lines]))
    monkeypatch.setattr(BagSet, "read", lambda *_, **__: pytest.fail("a bag was read"))
    with pytest.raises(error, match=told):
        finetune(config_of(*overrides), slides.bags, labels, tmp_path / "run")


def slide_encoder_folder(folder: Path, **provenance: object) -> Path:
    size = {"width": 16, "depth": 2, "n_heads": 2, "segments": [8, 32], "dilations": [1, 2]}
    torch.manual_seed(0)
    network = SlideEncoder(input_width=WIDTH, **size)
    made_for = TileEncoderFacts(
        name="anlage-tiny", fingerprint="e" * 64, mpp=0.5, tile_px=MADE.tile_px, width=WIDTH
    )
    config = SlideEncoderConfig(
        architecture={"input_width": WIDTH, **size},
        grid_um=128.0,
        tile_encoder=made_for,
        provenance=provenance,
    )
    save_slide_encoder(folder, network, config)
    return folder


def test_a_slide_encoder_is_tuned_with_its_head(slides, tmp_path) -> None:
    """LongNet + ABMIL with the shortcut, as the paper; who it was pretrained on is told."""
    encoder = slide_encoder_folder(
        tmp_path / "encoder", patients=["patient 001", "patient 002", "patient x"]
    )
    named = json.dumps(str(encoder))
    how = ("epochs=4", "optimizer.layer_decay=0.8", "choice={keep: last, patience: null}")
    tuned = (f"model={{slide_encoder: {{init: {named}, dropout: 0.1}}, shortcut: true}}", *how)
    frozen = (f"model={{slide_encoder: {{init: {named}, frozen: true}}}}", *how)
    ends = [
        finetune(config_of(*change), slides.bags, slides.labels, tmp_path / f"run-{number}")
        for number, change in enumerate((tuned, frozen))
    ]
    stored = [load_slide_model(end.run_dir / "fold-0/model").network for end in ends]
    torch.manual_seed(0)
    size = {"width": 16, "depth": 2, "n_heads": 2, "segments": [8, 32], "dilations": [1, 2]}
    before = SlideEncoder(input_width=WIDTH, **size).state_dict()
    for network, is_frozen in zip(stored, (False, True), strict=True):
        after = network.slide_encoder.state_dict()
        same = all(torch.equal(value, before[name]) for name, value in after.items())
        assert same == is_frozen
    assert ends[0].result.leakage["slide encoder"].seen == ["patient 001", "patient 002"]
    told = "The slide encoder saw 2 of 20 tested patients in pretraining: patient 001, patient 002."
    assert told in ends[0].result.notes


def test_a_slide_that_an_encoder_was_pretrained_on_is_known_by_its_hash(slides, tmp_path) -> None:
    """Where nobody named the patients of the pretraining."""
    bags = copied(slides, tmp_path).bags
    first, other = sorted(bags.glob("*.h5"))[:2]
    made = read_bag_header(first).attributes
    provenance = {"slides": {first.stem: made.slide_fingerprint, other.stem: "of another file"}}
    record = {
        "encoder_fingerprint": MADE.encoder_fingerprint,
        "encoder": {"provenance": {**provenance, "n_without_patient": 2}},
    }
    (bags / "embedding.json").write_text(json.dumps(record))
    end = finetune(config_of("epochs=2"), bags, slides.labels, tmp_path / "run")
    assert len(end.result.leakage["tile encoder"].seen) == 1


def test_patients_of_the_tile_encoder_are_told_where_the_bags_tell_them(slides, tmp_path) -> None:
    bags = copied(slides, tmp_path).bags
    record = {
        "encoder_fingerprint": MADE.encoder_fingerprint,
        "encoder": {"provenance": {"patients": ["patient 003", "patient x"]}},
    }
    (bags / "embedding.json").write_text(json.dumps(record))
    end = finetune(config_of("epochs=2"), bags, slides.labels, tmp_path / "run")
    assert end.result.leakage["tile encoder"].seen == ["patient 003"]
    told = "The tile encoder saw 1 of 20 tested patients in pretraining: patient 003."
    assert told in end.result.notes


def test_labels_without_patients_are_told_of(slides, tmp_path) -> None:
    labels = tmp_path / "labels.csv"
    rows = two_classes(20, slides_each=2)
    labels.write_text("slide_id,label\n" + "".join(f"{r['slide_id']},{r['label']}\n" for r in rows))
    end = finetune(config_of("epochs=2"), slides.bags, labels, tmp_path / "run")
    assert end.result.n_patients == 40
    assert end.result.notes[0].startswith("NO PATIENT INFORMATION: split by slide")


def test_no_folder_of_this_machine_stands_in_files_that_travel(
    slides, tmp_path, monkeypatch
) -> None:
    """The encoder's last name and fingerprint are told; a run goes on from wherever it lies."""
    encoder = slide_encoder_folder(tmp_path / "someone" / "encoder")
    how = ("epochs=2", "choice={keep: last, patience: null}")

    def config(init: object) -> FinetuneConfig:
        return config_of(f"model={{slide_encoder: {{init: {json.dumps(str(init))}}}}}", *how)

    run = tmp_path / "run"
    finetune(config(encoder), slides.bags, slides.labels, run)
    for name in ("run.json", "result.json", "card.md", "fold-0/model/config.json"):
        assert str(tmp_path) not in (run / name).read_text(), name
    record = json.loads((run / "run.json").read_text())
    assert record["config"]["model"]["slide_encoder"]["init"] == "encoder"
    assert len(record["slide_encoder"]) == 64
    (run / "fold-1/fold.json").unlink()
    encoder.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    again = finetune(config("moved"), slides.bags, slides.labels, run, resume=True)
    assert again.result.config["model"]["slide_encoder"]["init"] == "encoder"
    file = tmp_path / "moved/config.json"
    file.write_text(file.read_text().replace('"grid_um": 128.0', '"grid_um": 64.0'))
    with pytest.raises(CheckpointError, match="needs the slide encoder it began with"):
        finetune(config("moved"), slides.bags, slides.labels, run, resume=True)


def test_parts_of_a_step_draw_their_own_dropout_and_stay(finished, slides, tmp_path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished.run_dir, run)
    with pytest.raises(CheckpointError, match="accumulate was 1, is now 2"):
        finetune(config_of("accumulate=2"), slides.bags, slides.labels, run, resume=True)


def test_a_floor_that_a_fold_lacks_is_told_of(slides, tmp_path, monkeypatch) -> None:
    whole = finetune_module.mean_pool_scores

    def none_in_fold_1(targets, split, means):
        return None if split.name == "1" else whole(targets, split, means)

    monkeypatch.setattr(finetune_module, "mean_pool_scores", none_in_fold_1)
    result = finetune(config_of("epochs=2"), slides.bags, slides.labels, tmp_path / "run").result
    assert {score.predictor for score in result.scores} == {"model", "prior"}
    assert result.difference is None
    told = "No linear probe on the mean tile could be made in 1 of 3 folds (1), so that it is not"
    assert any(note.startswith(told) for note in result.notes)


def test_slides_without_a_patient_are_counted(slides, tmp_path) -> None:
    labels = tmp_path / "labels.csv"
    rows = two_classes(20, slides_each=2)
    for row in rows[:6]:
        row["patient_id"] = ""
    lines = [",".join(map(str, row.values())) for row in rows]
    labels.write_text("\n".join(["slide_id,patient_id,label", *lines]))
    result = finetune(config_of("epochs=2"), slides.bags, labels, tmp_path / "run").result
    assert (result.n_patients, result.n_without_patient) == (23, 6)
    assert result.notes[0].startswith("NO PATIENT IS KNOWN of 6 of 40 slides")


def test_slides_that_splits_leave_out_are_not_counted(slides, tmp_path) -> None:
    splits = tmp_path / "splits.csv"
    sides = {number: ("test", "train", "train", "")[number % 4] for number in range(20)}
    lines = [f"patient {number:03d},{side}" for number, side in sides.items() if number != 19]
    splits.write_text("\n".join(["patient_id,fold_0", *lines]))
    config = config_of("epochs=2")
    run = tmp_path / "run"
    result = finetune(config, slides.bags, slides.labels, run, splits=splits).result
    assert (result.n_slides, result.n_patients) == (30, 15)
    assert sum(result.classes.values()) == 30
    assert result.passed_over == {"on no side of the splits": 10}
    assert "passed over: 10 slides on no side of the splits" in result.summary()
    prepared = prepare(config, slides.bags, slides.labels, splits=splits, reads_bags=False)
    assert any("slides: 30 of 15 patients" in line for line in plan_lines(config, prepared))


def test_patients_whose_labels_chose_the_encoder_are_told(slides, tmp_path) -> None:
    encoder = slide_encoder_folder(
        tmp_path / "encoder", patients=["patient x"], watched={"cases": ["patient 001"]}
    )
    change = f"model={{slide_encoder: {{init: {json.dumps(str(encoder))}}}}}"
    run = tmp_path / "run"
    result = finetune(config_of(change, "epochs=2"), slides.bags, slides.labels, run).result
    assert result.leakage["slide encoder"].chosen_by == ["patient 001"]
    told = "The slide encoder saw 1 of 20 tested patients before, and the labels of 1 of them chose"
    assert any(note.startswith(f"{told} it: patient 001.") for note in result.notes)
    assert not any("in pretraining: patient 001" in note for note in result.notes)


def test_a_slide_encoder_of_other_tiles_is_refused(slides, tmp_path) -> None:
    encoder = slide_encoder_folder(tmp_path / "encoder")
    config = json.loads((encoder / "config.json").read_text())
    config["tile_encoder"]["fingerprint"] = "a" * 64
    (encoder / "config.json").write_text(json.dumps(config))
    change = f"model.slide_encoder={{init: {json.dumps(str(encoder))}}}"
    with pytest.raises(BagError, match="the slide encoder takes anlage-tiny"):
        finetune(config_of(change), slides.bags, slides.labels, tmp_path / "run")


def test_patients_are_predicted_by_the_mean_of_their_slides(slides, tmp_path) -> None:
    end = finetune(
        config_of("task.unit=patient", "epochs=2"), slides.bags, slides.labels, tmp_path / "run"
    )
    table = pq.read_table(end.run_dir / "predictions.parquet").to_pylist()
    fold = [row for row in table if row["fold"] == "0" and row["side"] == "test"]
    by_patient: dict[str, list[dict[str, object]]] = {}
    for row in fold:
        by_patient.setdefault(row["patient_id"], []).append(row)
    truth = [rows[0]["truth"] == "mutated" for rows in by_patient.values()]
    score = [np.mean([r["probability_mutated"] for r in rows]) for rows in by_patient.values()]
    pairs = [(t, s) for t, s in zip(truth, score, strict=True)]
    wins = [(s > t) + (s == t) / 2 for is_s, s in pairs for is_t, t in pairs if is_s and not is_t]
    assert end.result.score("auroc").of_fold["0"] == pytest.approx(np.mean(wins))
    assert any("its prediction is the mean of theirs" in note for note in end.result.notes)


def test_random_divisions_test_patients_again_and_say_so(slides, tmp_path) -> None:
    change = "folds={kind: random, n: 2, test: 0.4, validation: 0.2}"
    end = finetune(config_of(change, "epochs=2"), slides.bags, slides.labels, tmp_path / "run")
    assert [fold.slides["test"] for fold in end.result.folds] == [16, 16]
    assert end.result.score("auroc").pooled is None
    assert any("test some patients several times: 32 predictions" in n for n in end.result.notes)


def test_a_metric_without_a_value_in_a_fold_is_told_of(slides, tmp_path) -> None:
    """Two divisions, one of which tests one class only."""
    rows = two_classes(20, slides_each=2)
    wild = sorted({str(row["patient_id"]) for row in rows if row["label"] == "wild"})
    lines = ["patient_id,fold_0,fold_1"]
    for number, patient in enumerate(sorted({str(row["patient_id"]) for row in rows})):
        one = "test" if patient in wild[:4] else "train"
        lines.append(f"{patient},{one},{'test' if number < 6 else 'train'}")
    (tmp_path / "splits.csv").write_text("\n".join(lines))
    end = finetune(
        config_of("epochs=2"),
        slides.bags,
        slides.labels,
        tmp_path / "run",
        splits=tmp_path / "splits.csv",
    )
    score = end.result.score("auroc")
    assert score.of_fold["0"] is None
    assert score.mean_of_folds.value == pytest.approx(score.of_fold["1"])
    assert any(
        note.startswith("auroc has no value in 1 of 2 folds (0)") for note in end.result.notes
    )
    assert any("tested patients are too few" in note for note in end.result.notes)


def test_intervals_of_folds_stand_in_the_same_columns(slides, tmp_path) -> None:
    """Each fold cuts time at the quantiles of its own events; columns are named by number."""
    rows = two_classes(20, slides_each=2)
    lines = [f"{r['slide_id']},{r['patient_id']},{3 + k**2},1" for k, r in enumerate(rows)]
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(["slide_id,patient_id,months,dead", *lines]))
    task = "{kind: survival_discrete, target: null, positive: null, time: months, event: dead}"
    config = config_of(f"task={task}", "epochs=2", "folds.n=2", "task.intervals=3")
    end = finetune(config, slides.bags, labels, tmp_path / "run")
    models = [load_slide_model(tmp_path / f"run/fold-{n}/model").config.task for n in (0, 1)]
    assert models[0].edges != models[1].edges
    assert models[0].score_names == ("risk", "survival_1", "survival_2")
    schema = pq.read_schema(end.run_dir / "predictions.parquet")
    assert schema.names[-3:] == ["risk", "survival_1", "survival_2"]
    edges = json.loads(schema.metadata[b"anlage.edges"])
    assert edges == {str(number): list(task.edges) for number, task in enumerate(models)}
    assert finetune(config, slides.bags, labels, tmp_path / "run", resume=True).result is not None
