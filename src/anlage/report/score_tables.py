"""Scores as tables: models and probes with intervals, differences from the floors, each case."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from anlage.evaluation.result import EvaluationResult, Model
from anlage.probes.uncertainty.interval import Interval
from anlage.report.contents import Contents
from anlage.report.line_chart import Tick, nice_ticks, scaled

LOGGER = logging.getLogger(__name__)
MODELS: dict[Model, str] = {
    "encoder": "This encoder",
    "untrained": "Same network, random weights",
    "colour_texture": "Colour and texture, no network",
}
PROBES = {"linear": "linear", "knn": "kNN"}
MOST_CASES = 200
BAR = (6.0, 234.0)  # the drawing of an interval, pixels


@dataclass(frozen=True, kw_only=True)
class Bar:
    """An interval as a drawing: places in pixels of both intervals and of the estimate."""

    low: float
    high: float
    t_low: float
    t_high: float
    at: float


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """A number with its intervals.

    Attributes:
        model: Whose it is.
        probe: Which probe.
        estimate: The number.
        bootstrap: Ends of the bootstrap interval.
        t: Ends of the t-interval.
        n_groups: Cases.
        is_unreliable: Too few of them.
        is_ours: Whether it is the encoder's own.
        bar: The same as a drawing.
    """

    model: str
    probe: str
    estimate: str
    bootstrap: str
    t: str
    n_groups: int
    is_unreliable: bool
    is_ours: bool
    bar: Bar


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The common axis of drawn intervals, and the line that matters on it (chance, or none)."""

    ticks: tuple[Tick, ...]
    line: float
    line_name: str


@dataclass(frozen=True, kw_only=True)
class CaseRow:
    """One case under the linear probe.

    Attributes:
        name: The case.
        label: Its class (several are joined).
        n_tiles: Its tiles; None if not known.
        accuracies: Of each model, 0 to 1.
        differences: Encoder minus each floor.
        is_seen: Whether the encoder saw it before.
    """

    name: str
    label: str
    n_tiles: int | None
    accuracies: tuple[float, ...]
    differences: tuple[float, ...]
    is_seen: bool


@dataclass(frozen=True, kw_only=True)
class ScoresSection:
    """All scores.

    Attributes:
        task: What was tested, in a sentence.
        scores: One row a model and probe.
        score_axis: Their axis.
        differences: Encoder minus each floor.
        difference_axis: Their axis.
        models: Names of the columns of ``cases``.
        cases: At most 200, by class.
        n_cases: All cases.
        notes: From the result.
    """

    task: str
    scores: tuple[ScoreRow, ...]
    score_axis: Axis
    differences: tuple[ScoreRow, ...]
    difference_axis: Axis
    models: tuple[str, ...]
    cases: tuple[CaseRow, ...]
    n_cases: int
    notes: tuple[str, ...]


def scores_section(contents: Contents) -> ScoresSection | None:
    """Tables of the result; None without one."""
    result = contents.result
    if result is None:
        return None
    chance = result.chance["balanced_accuracy"]
    differences = [(MODELS[c.floor], c.probe, c.difference) for c in result.comparisons]
    scores = [(MODELS[s.model], s.probe, s.balanced_accuracy) for s in result.scores]
    score_rows, score_axis = _rows(scores, line=chance, line_name="chance", sign="")
    difference_rows, difference_axis = _rows(differences, line=0.0, line_name="no gain", sign="+")
    data = result.data
    return ScoresSection(
        task=(
            f"{data.name}: {data.n_tiles:,} tiles of {data.n_groups} cases in {len(data.classes)} "
            f"classes; {result.protocol.replace('-', ' ')}, {result.n_splits} splits. A probe "
            "never trains on a case that it is tested on."
        ),
        scores=score_rows,
        score_axis=score_axis,
        differences=difference_rows,
        difference_axis=difference_axis,
        models=tuple(MODELS.values()),
        cases=tuple(_cases(result, contents.predictions)[:MOST_CASES]),
        n_cases=data.n_groups,
        notes=tuple(result.notes),
    )


def _rows(
    intervals: Sequence[tuple[str, str, Interval]], *, line: float, line_name: str, sign: str
) -> tuple[tuple[ScoreRow, ...], Axis]:
    """Rows and their common axis."""
    ends = [end for _, _, i in intervals for end in (i.low, i.high, i.t_low, i.t_high, i.estimate)]
    ticks = nice_ticks(min([line, *ends]), max([line, *ends]))
    domain = (ticks[0], ticks[-1])

    def place(value: float) -> float:
        return scaled(value, domain, BAR)

    rows = tuple(
        ScoreRow(
            model=model,
            probe=PROBES[probe],
            estimate=f"{i.estimate:{sign}.3f}",
            bootstrap=f"{i.low:{sign}.3f} to {i.high:{sign}.3f}",
            t=f"{i.t_low:{sign}.3f} to {i.t_high:{sign}.3f}",
            n_groups=i.n_groups,
            is_unreliable=i.is_unreliable,
            is_ours=model == MODELS["encoder"],
            bar=Bar(
                low=place(i.low),
                high=place(i.high),
                at=place(i.estimate),
                t_low=place(i.t_low),
                t_high=place(i.t_high),
            ),
        )
        for model, probe, i in intervals
    )
    shown = tuple(Tick(at=place(v), text=f"{v:{sign}g}" if v else "0") for v in ticks)
    return rows, Axis(ticks=shown, line=place(line), line_name=line_name)


def _cases(result: EvaluationResult, predictions: Path | None) -> list[CaseRow]:
    labels, n_tiles = _labels_of_cases(predictions)
    accuracy = {model: result.score(model, "linear").group_accuracy for model in MODELS}
    linear = [c.group_difference for c in result.comparisons if c.probe == "linear"]
    seen = set(result.leakage.seen)
    rows = [
        CaseRow(
            name=case,
            label=labels.get(case, ""),
            n_tiles=n_tiles.get(case),
            accuracies=tuple(accuracy[model][case] for model in MODELS),
            differences=tuple(difference[case] for difference in linear),
            is_seen=case in seen,
        )
        for case in accuracy["encoder"]
    ]
    return sorted(rows, key=lambda row: (row.label, row.name))


def _labels_of_cases(predictions: Path | None) -> tuple[Mapping[str, str], Mapping[str, int]]:
    """Class and number of tiles of each case, from the stored predictions."""
    if predictions is None:
        return {}, {}
    try:
        table = pq.read_table(predictions, columns=["group", "label"])
    except (OSError, ValueError, pa.ArrowException) as error:
        LOGGER.warning("%s cannot be read: %s", predictions, error)
        return {}, {}
    labels: dict[str, set[str]] = {}
    counts: dict[str, int] = {}
    for row in table.to_pylist():
        labels.setdefault(row["group"], set()).add(row["label"])
        counts[row["group"]] = counts.get(row["group"], 0) + 1
    return {k: ", ".join(sorted(v)).replace("_", " ") for k, v in labels.items()}, counts
