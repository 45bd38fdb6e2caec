"""Adapters of the services that a run's metrics can go to: ``log``, ``image``, ``close``.

Packages are imported when a service is opened, and never by a run that does not name it.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

PROJECT = "anlage"
FLUSH_EVERY_S = 5.0  # a request to an MLflow server each step would cost it tens of milliseconds
MOST_VALUES = 1000  # of one MLflow request
MLFLOW_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # 7 would hold up a step for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


class Tracker(Protocol):
    """What a service is given."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the metrics of a step."""

    def image(self, step: int, name: str, path: Path) -> None:
        """Record a picture, a PNG, of a step."""

    def close(self) -> None:
        """Send what is left and end the service's run."""


class TensorBoard:
    """Event files in ``RUN/tensorboard``; steps that a resumed run does again are purged."""

    def __init__(self, run_dir: Path, *, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=first_step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the metrics of a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def image(self, step: int, name: str, path: Path) -> None:
        """Record a picture of a step."""
        self._writer.add_image(name, np.asarray(Image.open(path)), step, dataformats="HWC")

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class WeightsAndBiases:
    """A W&B run; a resumed one goes on, and W&B keeps the first values of steps done twice.

    Project, server and mode are W&B's own settings (``WANDB_PROJECT``, ``WANDB_MODE=offline``).
    Code, git state, console, host name and machine statistics are not sent.
    """

    def __init__(self, run_dir: Path, run_id: str, config: Mapping[str, Any]) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        wandb: Any = import_module("wandb")
        self._image = wandb.Image
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run_dir.name,
            id=run_id,
            resume="allow",
            dir=str(run_dir),
            config=dict(config),
            save_code=False,
            settings=wandb.Settings(
                host="unnamed",  # an empty one is filled in
                console="off",
                disable_code=True,
                disable_git=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the metrics of a step."""
        self._run.log(dict(values), step=step)

    def image(self, step: int, name: str, path: Path) -> None:
        """Record a picture of a step."""
        self._run.log({name: self._image(str(path))}, step=step)

    def close(self) -> None:
        """Send what is left and end the run."""
        self._run.finish()


class MLflow:
    """An MLflow run, where ``MLFLOW_TRACKING_URI`` says, else in ``RUN/mlflow.db``.

    Values are sent every five seconds. Of steps that a resumed run does again MLflow keeps both
    values; numbers that are not finite are left out, which not every store holds.
    """

    def __init__(self, run_dir: Path, run_id: str | None, config: Mapping[str, Any]) -> None:
        for setting, value in MLFLOW_SETTINGS.items():
            os.environ.setdefault(setting, value)
        self._metric: Any = import_module("mlflow.entities").Metric
        uri = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{run_dir.resolve()}/mlflow.db")
        self._client: Any = import_module("mlflow").MlflowClient(tracking_uri=uri)
        self._waiting: list[Any] = []
        self._sent = time.monotonic()
        if run_id is None:
            run_id = self._new_run(run_dir)
            self._client.log_dict(run_id, dict(config), "config.json")
        else:
            self._client.update_run(run_id, status="RUNNING")
        self.run_id: str = run_id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the metrics of a step."""
        now_ms = int(time.time() * 1000)
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self._waiting += [self._metric(n, float(v), now_ms, step) for n, v in finite.items()]
        if time.monotonic() - self._sent > FLUSH_EVERY_S:
            self._send()

    def image(self, step: int, name: str, path: Path) -> None:
        """Record a picture of a step."""
        self._client.log_artifact(self.run_id, str(path), name)

    def close(self) -> None:
        """Send what is left and end the run."""
        self._send()
        self._client.set_terminated(self.run_id)

    def _new_run(self, run_dir: Path) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            place = found.experiment_id
        elif "MLFLOW_TRACKING_URI" in os.environ:  # whoever keeps the runs keeps the pictures
            place = self._client.create_experiment(name)
        else:
            folder = (run_dir.resolve() / "mlflow").as_uri()
            place = self._client.create_experiment(name, artifact_location=folder)
        made: str = self._client.create_run(place, run_name=run_dir.name).info.run_id
        return made

    def _send(self) -> None:
        while self._waiting:
            self._client.log_batch(self.run_id, metrics=self._waiting[:MOST_VALUES])
            del self._waiting[:MOST_VALUES]
        self._sent = time.monotonic()


class Trackio:
    """A trackio run, kept where trackio keeps its runs (``TRACKIO_DIR``), or on its server.

    Of steps that a resumed run does again trackio keeps both values.
    """

    def __init__(self, run_dir: Path, run_id: str, config: Mapping[str, Any]) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints over the progress bar
            trackio: Any = import_module("trackio")
            self._image = trackio.Image
            self._run: Any = trackio.init(
                project=os.environ.get("TRACKIO_PROJECT", PROJECT),
                name=f"{run_dir.name}-{run_id}",
                resume="allow",
                config=dict(config),
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the metrics of a step."""
        self._run.log(dict(values), step=step)

    def image(self, step: int, name: str, path: Path) -> None:
        """Record a picture of a step."""
        self._run.log({name: self._image(path)}, step=step)

    def close(self) -> None:
        """Store what is left and end the run."""
        with contextlib.redirect_stdout(io.StringIO()):
            self._run.finish()
