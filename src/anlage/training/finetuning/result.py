"""The result of fine-tuning: what stands in ``result.json``, and how it reads in words.

Shape suffixes: N rows (slides or patients).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from anlage.encoders.leakage import Leakage
from anlage.errors import CheckpointError
from anlage.files import write_json_whole, write_text_whole
from anlage.probes.uncertainty.interval import Interval

FORMAT: Final = "finetune/1"
Predictor = Literal["model", "mean_pool", "prior"]
CALLED = {
    "model": "model",
    "mean_pool": "linear probe on the mean tile",
    "prior": "training frequencies",
}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Estimate(_Frozen):
    """A number with its intervals over patients; None in place of an end that has no bound.

    Attributes:
        value: The number on all tested patients.
        low: Lower end of the bootstrap interval.
        high: Upper end.
        t_low: Lower end of the t-interval (jackknife over patients).
        t_high: Upper end.
        n_patients: Patients they rest on.
        is_unreliable: Fewer than 20.
        words: All of it on one line.
    """

    value: float
    low: float | None
    high: float | None
    t_low: float | None
    t_high: float | None
    n_patients: int
    is_unreliable: bool
    words: str


class Score(_Frozen):
    """A metric of a predictor on the test sides.

    Attributes:
        predictor: The fine-tuned ``model``, or a floor: ``mean_pool``, ``prior``.
        metric: Name of the metric.
        label: The class or label that it is of; empty of all.
        mean_of_folds: Mean over the folds, each scored by itself; None where no fold has a value.
        of_fold: Value in each fold; None where it has none there.
        pooled: On the rows of all folds together, where each is tested once; models of different
            folds are then compared with each other.
    """

    predictor: Predictor
    metric: str
    label: str = ""
    mean_of_folds: Estimate | None
    of_fold: dict[str, float | None]
    pooled: float | None = None


class FoldRow(_Frozen):
    """A fold.

    Attributes:
        name: Its name.
        slides: Slides of each side.
        patients: Patients of each side.
        steps: Steps trained.
        kept_step: Steps of the model that is kept.
        ended_early: Whether patience ended it.
    """

    name: str
    slides: dict[str, int]
    patients: dict[str, int]
    steps: int
    kept_step: int | None
    ended_early: bool


class LeftOut(_Frozen):
    """A labelled slide that could not take part.

    Attributes:
        slide_id: The slide.
        reason: Why.
    """

    slide_id: str
    reason: str


class FinetuneResult(_Frozen):
    """What a fine-tuning run found out.

    Attributes:
        format: Format and version of the file.
        task: The task's section of the recipe.
        task_name: The task in words; a threshold stands in it.
        classes: Slides of each class, or with each label, among those of the task.
        n_slides: Slides of the task on some side of some fold.
        n_patients: Their patients; a slide whose patient nobody named counts as one.
        n_without_patient: Slides of which nobody named the patient.
        folds: The folds.
        scores: Of the model and of the floors, the metric that stands for the task first.
        difference: Model less ``mean_pool`` in that metric, on the same patients; None where one
            has no value.
        leakage: By encoder (``slide encoder``, ``tile encoder``), which tested patients it saw.
        notes: What a reader needs to know, most important first.
        refused: Labelled slides without a usable bag.
        passed_over: How many slides the task does not take, by reason.
        config: The resolved recipe.
        data: Fingerprints of bags, labels, splits and slide encoder.
        versions: Of Python and packages.
        commit: Of the source, if known.
    """

    format: Literal["finetune/1"] = FORMAT
    task: dict[str, Any]
    task_name: str
    classes: dict[str, int]
    n_slides: int
    n_patients: int
    n_without_patient: int
    folds: list[FoldRow]
    scores: list[Score]
    difference: Estimate | None
    leakage: dict[str, Leakage]
    notes: list[str]
    refused: list[LeftOut]
    passed_over: dict[str, int]
    config: dict[str, Any]
    data: dict[str, Any]
    versions: dict[str, str]
    commit: str | None

    def score(self, metric: str, *, predictor: Predictor = "model", label: str = "") -> Score:
        """One score."""
        wanted = (predictor, metric, label)
        return next(s for s in self.scores if (s.predictor, s.metric, s.label) == wanted)

    def summary(self) -> list[str]:
        """The result as lines of text: the data, scores beside their floors, notes."""
        return [*self._head(), *self._score_lines(), *(f"note: {note}" for note in self.notes)]

    def _head(self) -> Iterator[str]:
        yield f"{self.task['kind']}: {self.task_name}"
        counts = ", ".join(f"{n} {name}" for name, n in self.classes.items())
        told = f" ({counts})" if counts else ""
        yield f"{self.n_slides} slides of {self.n_patients} patients{told}; {len(self.folds)} folds"
        for reason, n in self.passed_over.items():
            yield f"passed over: {n} slides {reason}"

    def _score_lines(self) -> Iterator[str]:
        for score in self.scores:
            name = f"{score.metric} {score.label}".strip()
            found = score.mean_of_folds
            told = "no value in any fold" if found is None else found.words
            yield f"{name}, {CALLED[score.predictor]}: {told}"


def estimate_of(interval: Interval, *, sign: Literal["", "+"] = "") -> Estimate:
    """An interval as JSON can hold it."""
    ends = {name: getattr(interval, name) for name in ("low", "high", "t_low", "t_high")}
    return Estimate(
        value=interval.estimate,
        n_patients=interval.n_groups,
        is_unreliable=interval.is_unreliable,
        words=interval.in_words(sign=sign),
        **{name: end if math.isfinite(end) else None for name, end in ends.items()},
    )


def write_result(run_dir: Path, result: FinetuneResult) -> None:
    """Write ``result.json``, and the same in words as ``card.md``."""
    lines = "\n".join(f"- {line}" for line in result.summary())
    write_text_whole(run_dir / "card.md", f"# {result.task_name}\n\n{lines}\n")
    write_json_whole(run_dir / "result.json", result.model_dump(mode="json"))


def read_result(path: Path) -> FinetuneResult:
    """Read ``result.json``.

    Raises:
        CheckpointError: If it is not a result of this version.
    """
    try:
        return FinetuneResult.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError) as error:
        message = f"is no result of this version ({type(error).__name__}). Run --resume again."
        raise CheckpointError(path, message) from error
