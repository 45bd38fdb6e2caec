"""Where a run's metrics go beside ``metrics.jsonl``: TensorBoard, and W&B, MLflow, trackio by name.

A service that is not installed or does not open is refused before the first step; one that fails
later is warned of once and dropped.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from anlage.errors import TrainingError
from anlage.files import write_json_whole
from anlage.training.tracker_services import (
    MLflow,
    TensorBoard,
    Tracker,
    Trackio,
    WeightsAndBiases,
)

LOGGER = logging.getLogger(__name__)
FORMAT = "trackers/1"
NAMES = ("wandb", "mlflow", "trackio")  # of trackers, their packages and the extras of anlage


def refuse_missing_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that are not known or not installed; nothing is imported.

    Raises:
        TrainingError: If a name is none of ``NAMES``, or its package is not installed.
    """
    for name in names:
        if name not in NAMES:
            raise TrainingError(name, f"is no tracker. Choose one of {', '.join(NAMES)}.")
        if importlib.util.find_spec(name) is None:
            message = f"needs the package {name}, which is not installed"
            raise TrainingError(name, f"{message}. pip install 'anlage[{name}]'")


def open_trackers(
    names: Sequence[str], run_dir: Path, *, first_step: int, config: Mapping[str, Any]
) -> Trackers:
    """Open TensorBoard where it is installed, and the trackers named.

    TensorBoard that does not open is warned of: nobody asked for it.
    Ids of the services' runs are kept in ``RUN/trackers.json``, so that a resumed run goes on in
    the same ones.

    Args:
        names: Among ``NAMES``.
        run_dir: The run's folder.
        first_step: Step that is written first.
        config: Resolved recipe, for the services to show.

    Raises:
        TrainingError: If a name is unknown, a package missing, or a service does not open, before
            any step.
    """
    refuse_missing_trackers(names)
    opened: dict[str, Tracker] = {}
    if importlib.util.find_spec("tensorboard") is not None:
        try:
            opened["tensorboard"] = TensorBoard(run_dir, first_step=first_step)
        except Exception as error:  # noqa: BLE001 - nobody named it, so it stops no run
            LOGGER.warning(
                "tensorboard could not be opened; metrics.jsonl has everything: %s", error
            )
    ids = _read_ids(run_dir)
    for name in dict.fromkeys(names):
        try:
            opened[name], ids[name] = _open(name, run_dir, ids.get(name), config)
        except Exception as error:
            Trackers(opened).close()
            message = f"could not be opened: {error}. Set it up, or leave out this tracker."
            raise TrainingError(name, message) from error
    if names:
        write_json_whole(run_dir / "trackers.json", {"format": FORMAT, "runs": ids})
    return Trackers(opened)


class Trackers:
    """Open trackers, none of which can stop the training: one that fails is dropped.

    Attributes:
        names: Those still open.
    """

    def __init__(self, opened: Mapping[str, Tracker]) -> None:
        self._opened = dict(opened)

    @property
    def names(self) -> tuple[str, ...]:
        """Trackers that have not failed."""
        return tuple(self._opened)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the metrics of a step."""
        self._each(lambda tracker: tracker.log(step, values))

    def image(self, step: int, name: str, path: Path) -> None:
        """Record a picture, a PNG, of a step."""
        self._each(lambda tracker: tracker.image(step, name, path))

    def close(self) -> None:
        """Close all of them."""
        self._each(lambda tracker: tracker.close())
        self._opened = {}

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._opened.items()):
            try:
                act(tracker)
            except Exception as error:  # noqa: BLE001 - whatever a service's package may raise
                del self._opened[name]
                LOGGER.warning(
                    "%s failed and is dropped; metrics.jsonl has everything: %s", name, error
                )


def _open(
    name: str, run_dir: Path, run_id: str | None, config: Mapping[str, Any]
) -> tuple[Tracker, str]:
    if name == "mlflow":  # gives its ids itself
        mlflow = MLflow(run_dir, run_id, config)
        return mlflow, mlflow.run_id
    run_id = run_id or uuid.uuid4().hex[:8]
    kind = WeightsAndBiases if name == "wandb" else Trackio
    return kind(run_dir, run_id, config), run_id


def _read_ids(run_dir: Path) -> dict[str, str]:
    path = run_dir / "trackers.json"
    if not path.exists():
        return {}
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TrainingError(path, f"is not JSON ({error}). Delete it to begin new runs.") from error
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        raise TrainingError(path, f"needs format {FORMAT!r}. Delete it to begin new runs.")
    return dict(stored["runs"])
