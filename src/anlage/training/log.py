"""Metrics of a run: one JSON line a step, and the trackers that are open."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from pydantic import BaseModel

from anlage.distributed import Ranks
from anlage.errors import CheckpointError
from anlage.files import write_text_whole
from anlage.training.trackers import open_trackers, refuse_missing_trackers

LOGGER = logging.getLogger(__name__)


class MetricsLog:
    """Appends the metrics of every step to ``metrics.jsonl``, flushed line by line.

    A killed process leaves all of them; a machine that loses its power, those before ``sync``.

    A resumed run first drops the lines of steps that will be done again, so a step stands in the
    file once. TensorBoard gets the same where it is installed, and so do the trackers named; their
    failures never reach the training.

    Args:
        run_dir: The run's folder.
        first_step: Step that is written first.
        trackers: Names among ``wandb``, ``mlflow`` and ``trackio``.
        config: Resolved recipe, for the trackers to show.

    Attributes:
        path: The JSONL file.

    Raises:
        CheckpointError: If the file of an earlier process is damaged.
        TrainingError: If a tracker is not installed or does not open.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        first_step: int,
        trackers: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = run_dir / "metrics.jsonl"
        refuse_missing_trackers(trackers)  # before a file is made or changed
        self._keep_steps_before(first_step)
        self._trackers = open_trackers(
            trackers, run_dir, first_step=first_step, config=config or {}
        )
        self._file = self.path.open("a", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record one step; values that are not finite are written as null."""
        row = {k: v if _is_finite(v) else None for k, v in values.items()}
        self._file.write(json.dumps({"step": step, **row}, allow_nan=False) + "\n")
        self._file.flush()
        self._trackers.log(step, values)

    def sync(self) -> None:
        """Put all rows on disk: before a checkpoint says that their steps are done.

        Raises:
            OSError: If the system does not let it.
        """
        self._file.flush()
        os.fsync(self._file.fileno())

    def image(self, step: int, name: str, path: Path) -> None:
        """Hand a picture of a step, a PNG, to the trackers; call it before the next step's row."""
        self._trackers.image(step, name, path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            with closing(self._trackers), self._file:
                self.sync()
        except OSError as fault:
            if error is None:
                raise
            LOGGER.warning("%s could not be written to its end: %s", self.path, fault)

    def _keep_steps_before(self, first_step: int) -> None:
        """Write the file anew, empty where there is none yet: its name is on disk then, too."""
        rows = read_metrics(self.path) if self.path.exists() else []
        kept = [json.dumps(row) + "\n" for row in rows if row["step"] < first_step]
        write_text_whole(self.path, "".join(kept))


class SilentLog:
    """In place of ``MetricsLog`` on all ranks but the first: they write nothing."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def sync(self) -> None:
        """Nothing."""

    def image(self, step: int, name: str, path: Path) -> None:
        """Nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Nothing to close."""


class Logged(Protocol):
    """A run as its log sees it."""

    @property
    def config(self) -> BaseModel:
        """The resolved recipe."""

    @property
    def run_dir(self) -> Path:
        """The run's folder."""

    @property
    def step(self) -> int:
        """Finished steps."""

    @property
    def ranks(self) -> Ranks:
        """The processes that share each step."""


def log_of(training: Logged, trackers: Sequence[str]) -> MetricsLog | SilentLog:
    """The log of a run from its next step on; of all ranks but the first a silent one."""
    if not training.ranks.is_main:
        return SilentLog()
    config = training.config.model_dump(mode="json")
    return MetricsLog(training.run_dir, first_step=training.step, trackers=trackers, config=config)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics file; a last line cut short by a crash is left out.

    Args:
        path: ``RUN/metrics.jsonl``.

    Returns:
        One dict a step, in the order written.

    Raises:
        CheckpointError: If a line before the last is not the metrics of a step.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        row = _row(line)
        if row is not None:
            rows.append(row)
        elif number < len(lines):
            raise CheckpointError(
                path,
                f"line {number} needs one JSON object with its step; got {line[:40]!r}. "
                "Delete that line to go on without it.",
            )
    return rows


def _row(line: str) -> dict[str, Any] | None:
    """The metrics of one step; None if the line is broken."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _is_finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")  # noqa: PLR0124 - NaN differs from itself
