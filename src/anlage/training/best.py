"""The best encoder of a run by a probe, kept in ``RUN/best``, and when to stop waiting for more."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anlage.files import write_json_whole
from anlage.training.log import read_metrics

LOGGER = logging.getLogger(__name__)
FORMAT = "best/1"
FOLDER, RECORD = "best", "best.json"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a run stands in its search for a better probe.

    Attributes:
        step: Finished steps at the best look; None before the first with a value.
        value: Its probe; minus infinity before.
        looks_since: Looks after it, none of them better.
    """

    step: int | None = None
    value: float = -math.inf
    looks_since: int = 0

    def after(self, step: int, value: float | None) -> Standing:
        """The standing after one more look; a tie, and a probe without a value, is no better."""
        if value is not None and value > self.value:  # False for NaN
            return Standing(step=step, value=value)
        return Standing(step=self.step, value=self.value, looks_since=self.looks_since + 1)


def standing_of(rows: Iterable[Mapping[str, Any]], metric: str) -> Standing:
    """The standing after the looks that a metrics file tells of.

    Args:
        rows: Rows of ``metrics.jsonl``; those without the metric are no looks. Row ``step`` is
            written when ``step + 1`` steps are finished.
        metric: Name of the probe, such as ``watch_knn``; None (null) is a probe without a value.
    """
    standing = Standing()
    for row in rows:
        if metric in row:
            standing = standing.after(row["step"] + 1, row[metric])
    return standing


class BestEncoder:
    """Keeps the encoder with the best probe so far: ``RUN/best``, and ``RUN/best.json`` beside it.

    What counts as better follows from the looks in ``metrics.jsonl`` before the first step of this
    process alone, so a run that was killed after a look and goes on from a checkpoint before it
    decides as if it had never stopped. On CUDA, where steps done again differ in their last bits,
    ``RUN/best`` may stay that of a look which came out otherwise the second time; ``best.json``
    says what it is of.

    Args:
        run_dir: The run's folder.
        metric: Name of the probe, larger is better: ``watch_knn`` or ``watch_linear``.
        patience: Looks without a better probe after which to stop; None for never.
        first_step: Finished steps at which this process begins; later looks are done again.

    Raises:
        CheckpointError: If ``metrics.jsonl`` is damaged.
    """

    def __init__(
        self, run_dir: Path, *, metric: str, patience: int | None, first_step: int
    ) -> None:
        self._run_dir, self._metric, self._patience = run_dir, metric, patience
        path = run_dir / "metrics.jsonl"
        rows = read_metrics(path) if path.exists() else []
        self._standing = standing_of((r for r in rows if r["step"] < first_step), metric)

    @property
    def standing(self) -> Standing:
        """Best look so far, and how many came after it."""
        return self._standing

    @property
    def is_patience_over(self) -> bool:
        """Whether to stop: ``patience`` looks brought nothing better; a resumed run asks first."""
        return self._patience is not None and self._standing.looks_since >= self._patience

    def consider(
        self, step: int, metrics: Mapping[str, float], *, save: Callable[[Path], None]
    ) -> bool:
        """Keep this encoder if its probe is better than all before; a tie keeps the earlier.

        Call it before the step's row is written to ``metrics.jsonl``.

        Args:
            step: Finished steps.
            metrics: Metrics of the look.
            save: Writes the encoder that was looked at into a folder.

        Returns:
            Whether it was kept.

        Raises:
            OSError: If the disk is full; the encoder kept before is untouched.
        """
        value = metrics[self._metric]
        self._standing = self._standing.after(step, value)
        if self._standing.step != step:
            return False
        save(self._run_dir / FOLDER)
        record = {"format": FORMAT, "step": step, "metric": self._metric, "value": value}
        write_json_whole(self._run_dir / RECORD, record)
        LOGGER.info("step %d has the best %s so far, %.4f: kept", step, self._metric, value)
        return True


def read_best(run_dir: Path) -> dict[str, Any] | None:
    """What ``RUN/best.json`` says: format, step, metric, value; None if no encoder was kept."""
    path = run_dir / RECORD
    if not path.exists():
        return None
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record
