"""Trackers by their real packages, offline: what they hold, resumed, failing, missing."""

from __future__ import annotations

import os
import random
import sqlite3
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anlage.errors import TrainingError
from anlage.training import tracker_services
from anlage.training.log import MetricsLog, read_metrics
from anlage.training.trackers import NAMES, open_trackers, refuse_missing_trackers

CONFIG = {"steps": 4, "model": {"width": 24}}


@pytest.fixture(scope="module")
def trackio_dir(tmp_path_factory) -> Iterator[Path]:
    """Where trackio keeps runs; it reads the variable once, when it is imported."""
    assert "trackio" not in sys.modules
    folder = tmp_path_factory.mktemp("trackio")
    os.environ["TRACKIO_DIR"] = str(folder)
    yield folder
    del os.environ["TRACKIO_DIR"]


@pytest.fixture(autouse=True)
def offline(monkeypatch, trackio_dir) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for name in ("MLFLOW_TRACKING_URI", "WANDB_PROJECT", "TRACKIO_PROJECT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "step-00000003.png"
    Image.fromarray(np.full((20, 30, 3), (9, 90, 200), np.uint8)).save(path)
    return path


def steps(run_dir: Path, name: str, picture: Path, *, first: int, until: int) -> None:
    """Write steps, and a picture of each, as a training loop does."""
    run_dir.mkdir(exist_ok=True)
    with MetricsLog(run_dir, first_step=first, trackers=(name,), config=CONFIG) as log:
        for step in range(first, until):
            log.write(step, {"loss": 10.0 - step, "watch_knn": float("nan")})
            log.image(step, "watch", picture)


def wandb_records(run_dir: Path) -> list[Any]:
    """Records of W&B's offline files: LevelDB's log format after seven bytes."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # its service writes the last of a finished run when it ends
    records = []
    for path in sorted(run_dir.glob("wandb/offline-run-*/*.wandb")):
        data, place, whole = path.read_bytes(), 7, b""
        while place + 7 <= len(data):
            if 32768 - place % 32768 < 7:  # the end of a block is padding
                place += 32768 - place % 32768
                continue
            _, length, part = struct.unpack_from("<IHB", data, place)
            whole += data[place + 7 : place + 7 + length]
            place += 7 + length
            if part in {1, 4}:  # a whole record, or the last part of one
                records.append(Record.FromString(whole))
                whole = b""
    return records


@pytest.mark.slow
def test_wandb_holds_values_and_pictures_of_one_run(tmp_path, picture) -> None:
    run_dir = tmp_path / "run"
    steps(run_dir, "wandb", picture, first=0, until=3)
    steps(run_dir, "wandb", picture, first=2, until=4)
    records = wandb_records(run_dir)
    runs = [r.run for r in records if r.HasField("run")]
    assert len({run.run_id for run in runs}) == 1
    assert {run.host for run in runs} == {"unnamed"}
    sent = b"".join(record.SerializeToString() for record in records)
    assert str(Path(__file__)).encode() not in sent
    assert not any(record.HasField("stats") for record in records)
    assert {run.project for run in runs} == {"anlage"}
    assert any("24" in item.value_json for run in runs for item in run.config.update)
    losses = [
        (r.history.step.num, float(item.value_json))
        for r in records
        for item in r.history.item
        if "loss" in (item.key, *item.nested_key)
    ]
    assert losses == [(0, 10.0), (1, 9.0), (2, 8.0), (2, 8.0), (3, 7.0)]
    pictures = list(run_dir.glob("wandb/offline-run-*/files/media/images/*.png"))
    assert len(pictures) == 5
    assert pictures[0].read_bytes() == picture.read_bytes()


@pytest.mark.slow
def test_mlflow_holds_values_and_pictures_of_one_run(tmp_path, picture) -> None:
    from mlflow import MlflowClient

    run_dir = tmp_path / "run"
    steps(run_dir, "mlflow", picture, first=0, until=3)
    steps(run_dir, "mlflow", picture, first=2, until=4)
    client = MlflowClient(f"sqlite:///{run_dir}/mlflow.db")
    experiment = client.get_experiment_by_name("anlage")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "run"
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert sorted((m.step, m.value) for m in history) == [
        (0, 10.0),
        (1, 9.0),
        (2, 8.0),
        (2, 8.0),
        (3, 7.0),
    ]
    assert client.get_metric_history(run.info.run_id, "watch_knn") == []
    folder = run_dir / "mlflow" / run.info.run_id / "artifacts"
    assert (folder / "watch" / picture.name).read_bytes() == picture.read_bytes()
    assert '"width": 24' in (folder / "config.json").read_text()


@pytest.mark.slow
def test_trackio_holds_values_and_pictures_of_one_run(tmp_path, picture, trackio_dir) -> None:
    import trackio

    run_dir = tmp_path / "run"
    steps(run_dir, "trackio", picture, first=0, until=3)
    steps(run_dir, "trackio", picture, first=2, until=4)
    (run,) = [r for r in trackio.Api().runs("anlage") if r.name.startswith("run-")]
    with sqlite3.connect(trackio_dir / "anlage.db") as database:
        rows = database.execute(
            "select step, json_extract(metrics, '$.loss') from metrics where run_name = ?",
            [run.name],
        ).fetchall()
    losses = sorted((step, loss) for step, loss in rows if loss is not None)
    assert losses == [(0, 10.0), (1, 9.0), (2, 8.0), (2, 8.0), (3, 7.0)]
    pictures = list(trackio_dir.rglob("*.png"))
    assert len(pictures) == 5


def test_tensorboard_gets_pictures(tmp_path, picture) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsLog(tmp_path, first_step=0) as log:
        log.write(0, {"loss": 2.0})
        log.image(0, "watch", picture)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(0, 2.0)]
    (shown,) = events.Images("watch")
    assert (shown.step, shown.width, shown.height) == (0, 30, 20)


@pytest.mark.slow
def test_no_tracker_draws_from_a_global_generator(tmp_path, picture) -> None:
    def states():
        numpy_state = np.random.get_state()[1].tolist()  # noqa: NPY002 - not to be touched
        return torch.get_rng_state().tolist(), numpy_state, random.getstate()

    before = states()
    for name in NAMES:
        steps(tmp_path / name, name, picture, first=0, until=2)
    assert states() == before


@pytest.mark.slow
def test_a_tracker_that_fails_is_dropped_and_the_run_goes_on(
    tmp_path, picture, monkeypatch, caplog
) -> None:
    """Somebody deletes the run on the server while it goes on."""
    from mlflow import MlflowClient

    monkeypatch.setattr(tracker_services, "FLUSH_EVERY_S", -1.0)
    with MetricsLog(tmp_path, first_step=0, trackers=("mlflow",), config=CONFIG) as log:
        log.write(0, {"loss": 1.0})
        client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
        (run,) = client.search_runs([client.get_experiment_by_name("anlage").experiment_id])
        client.delete_run(run.info.run_id)
        for step in range(1, 4):
            log.write(step, {"loss": 1.0})
            log.image(step, "watch", picture)
    warned = [r.message for r in caplog.records if r.name == "anlage.training.trackers"]
    assert len(warned) == 1
    assert warned[0].startswith("mlflow failed and is dropped; metrics.jsonl has everything:")
    assert [row["step"] for row in read_metrics(log.path)] == [0, 1, 2, 3]


def test_a_service_that_does_not_open_is_refused_before_the_first_step(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody answers there
    with pytest.raises(TrainingError, match=r"mlflow: could not be opened: .*Set it up, or leave"):
        MetricsLog(tmp_path, first_step=0, trackers=("mlflow",))
    assert not (tmp_path / "trackers.json").exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_package_is_refused_by_the_extra(monkeypatch, name, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(TrainingError, match=rf"not installed. pip install 'anlage\[{name}\]'"):
        MetricsLog(tmp_path, first_step=0, trackers=(name,))
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_tracker_is_refused() -> None:
    with pytest.raises(TrainingError, match="aim: is no tracker. Choose one of wandb"):
        refuse_missing_trackers(("wandb", "aim"))


@pytest.mark.parametrize("stored", ["{", "[]", '{"format": "trackers/0"}'])
def test_a_damaged_record_of_ids_is_refused(tmp_path, stored) -> None:
    (tmp_path / "trackers.json").write_text(stored)
    with pytest.raises(TrainingError, match=r"trackers.json: .*Delete it to begin new runs"):
        open_trackers((), tmp_path, first_step=0, config={})
