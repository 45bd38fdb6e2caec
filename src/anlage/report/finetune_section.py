"""Fine-tuning results: every metric with its intervals beside the floors, and the folds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from anlage.report.contents import Contents
from anlage.report.found_files import without_folders
from anlage.report.line_chart import Chart, Tick, line_chart, nice_ticks, scaled
from anlage.report.score_tables import BAR, Axis, Bar
from anlage.report.slide_parts import TunedRun
from anlage.report.slide_verdicts import metric_name
from anlage.training.finetuning.result import CALLED, Estimate, FinetuneResult, FoldRow, Score
from anlage.training.log import read_metrics

MOST_REFUSED = 100
SIDES = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class TunedRow:
    """A metric of one predictor.

    Attributes:
        predictor: Whose it is.
        label: The class or label that it is of; empty of all.
        estimate: The mean over folds; ``no value`` where no fold has one.
        bootstrap: Ends of the bootstrap interval.
        t: Ends of the t-interval.
        pooled: On the rows of all folds together; empty where it has no meaning.
        n_patients: Patients.
        is_unreliable: Too few of them.
        is_ours: Whether it is the model's own.
        bar: The same as a drawing; None without a value.
    """

    predictor: str
    label: str
    estimate: str
    bootstrap: str = ""
    t: str = ""
    pooled: str = ""
    n_patients: int | None = None
    is_unreliable: bool = False
    is_ours: bool
    bar: Bar | None = None


@dataclass(frozen=True, kw_only=True)
class TunedTable:
    """One metric, or the difference from a floor.

    Attributes:
        caption: What it shows.
        rows: A row a predictor, and a label where there are several.
        axis: Of the drawn intervals.
        has_labels: Whether rows are of several labels.
        has_pooled: Whether a row has a number on all folds together.
        is_first: Whether it stands for the task.
    """

    caption: str
    rows: tuple[TunedRow, ...]
    axis: Axis
    has_labels: bool
    has_pooled: bool
    is_first: bool


@dataclass(frozen=True, kw_only=True)
class FoldLine:
    """A fold: whom it trained and tested, and what came of it.

    Attributes:
        name: Its name.
        sides: Slides and patients of train, val and test, in words.
        steps: Steps trained, and which model was kept.
        values: The first metric of the model and of each floor; ``none`` without a value.
    """

    name: str
    sides: tuple[str, ...]
    steps: str
    values: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TunedSection:
    """One fine-tuning run.

    Attributes:
        id: Of its heading.
        title: The task.
        task: What was trained and tested, in a sentence; how far it came if it is not finished.
        facts: Name and value of the recipe's choices.
        tables: The metrics, the one that stands for the task first.
        metric: Name of the first metric.
        predictors: Names of the columns of ``folds`` after the steps.
        folds: The folds.
        chart: Loss on the validation patients; None where there are none.
        dropped: Slide and reason of those that could not take part.
        n_dropped: All of them.
        passed_over: Slides that the task does not take, by reason, in words.
        notes: From the result.
    """

    id: str
    title: str
    task: str
    facts: tuple[tuple[str, str], ...] = ()
    tables: tuple[TunedTable, ...] = ()
    metric: str = ""
    predictors: tuple[str, ...] = ()
    folds: tuple[FoldLine, ...] = ()
    chart: Chart | None = None
    dropped: tuple[tuple[str, str], ...] = ()
    n_dropped: int = 0
    passed_over: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def finetune_sections(contents: Contents) -> tuple[TunedSection, ...] | None:
    """A section each run; None without one."""
    tuned = contents.over_slides.tuned
    return tuple(_section(run, number) for number, run in enumerate(tuned)) or None


def _section(run: TunedRun, number: int) -> TunedSection:
    name, result = f"finetune-{number}", run.result
    if result is None:
        task = run.record["config"].get("task") or {}
        n_done = len(list(run.folder.glob("fold-*/predictions.parquet")))
        told = f"Not finished: {n_done} folds have their predictions. Go on with --resume."
        return TunedSection(id=name, title=str(task.get("target") or task.get("kind")), task=told)
    first = _first_metric(result)
    predictors = [s.predictor for s in first]
    return TunedSection(
        id=name,
        title=result.task_name,
        task=_task(result),
        facts=tuple(_facts(result)),
        tables=tuple(_tables(result)),
        metric=metric_name(first[0].metric),
        predictors=tuple(CALLED[p] for p in predictors),
        folds=tuple(_fold(row, first) for row in result.folds),
        chart=_chart(run),
        dropped=tuple(
            (slide.slide_id, without_folders(slide.reason))
            for slide in result.refused[:MOST_REFUSED]
        ),
        n_dropped=len(result.refused),
        passed_over=tuple(
            f"{n} slide{'s' * (n != 1)}: {why}" for why, n in result.passed_over.items()
        ),
        notes=tuple(without_folders(note) for note in result.notes),
    )


def _first_metric(result: FinetuneResult) -> list[Score]:
    """The metric that stands for the task, of every predictor."""
    first = result.scores[0]
    wanted = (first.metric, first.label)
    return [score for score in result.scores if (score.metric, score.label) == wanted]


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _task(result: FinetuneResult) -> str:
    counts = ", ".join(f"{n} {name}" for name, n in result.classes.items())
    told = f" ({counts})" if counts else ""
    kind = _plain(result.task["kind"])
    folds = "1 fold" if len(result.folds) == 1 else f"{len(result.folds)} folds"
    return (
        f"{kind[:1].upper()}{kind[1:]} on {result.n_slides} slides of {result.n_patients} patients"
        f"{told}; {folds}. {_sides(result)}"
    )


def _sides(result: FinetuneResult) -> str:
    """Who is apart from whom, as far as patients are known."""
    if not result.n_without_patient:
        return (
            "No patient is on two sides of a fold, and the model that is kept was not chosen on "
            "tested patients."
        )
    return (
        "No slide is on two sides of a fold, and the model that is kept was not chosen on tested "
        f"slides; but the patients of {result.n_without_patient} slides are not known, and one of "
        "them may be on both sides."
    )


def _facts(result: FinetuneResult) -> Iterable[tuple[str, str]]:
    config = result.config
    model, rates = config["model"], config["optimizer"]
    encoder = model.get("slide_encoder")
    yield "Slide encoder", _slide_encoder(encoder, result) if encoder else "none: tiles are pooled"
    route = str(model["route"])
    yield "Head on", _plain(model["pooling"]["kind"]) if route == "pool" else route
    yield "Batch", f"{config['batch_size']} slides, {config['epochs']} epochs"
    rate = rates.get("peak_lr")
    told = f"peak rate {rate:g}" if rate else f"rate {rates['base_lr']:g} for 256 slides"
    decay = f", layer decay {rates['layer_decay']:g}" if rates["layer_decay"] < 1 else ""
    yield "Optimiser", f"AdamW, {told}{decay}"
    yield "Kept", f"{config['choice']['keep']} epoch"
    yield "Seed", str(config["seed"])


def _slide_encoder(encoder: dict[str, object], result: FinetuneResult) -> str:
    fingerprint = result.data.get("slide_encoder")
    if fingerprint is None:
        return "random weights"
    frozen = ", frozen" if encoder.get("frozen") else ""
    return f"pretrained, {str(fingerprint)[:12]}{frozen}"


def _tables(result: FinetuneResult) -> Iterable[TunedTable]:
    metrics = list(dict.fromkeys(score.metric for score in result.scores))
    first = result.scores[0].metric
    for metric in metrics:
        scores = [score for score in result.scores if score.metric == metric]
        yield _table(metric, scores, is_first=metric == first)
        if metric == first and result.difference is not None:
            caption = f"{metric_name(metric)}: the model minus {CALLED['mean_pool']}"
            yield _difference(caption, result.difference)


def _table(metric: str, scores: Sequence[Score], *, is_first: bool) -> TunedTable:
    found = {s.predictor: s.mean_of_folds for s in scores if s.mean_of_folds and not s.label}
    prior = found.get("prior")
    numbers = [score.mean_of_folds for score in scores if score.mean_of_folds is not None]
    scale = _Scale.of(numbers, line=None if prior is None else prior.value)
    rows = tuple(
        _row(CALLED[s.predictor], s.mean_of_folds, scale, label=s.label, pooled=s.pooled)
        for s in scores
    )
    return TunedTable(
        caption=f"{metric_name(metric)}, mean of folds",
        rows=rows,
        axis=scale.axis("frequencies"),
        has_labels=any(row.label for row in rows),
        has_pooled=any(row.pooled for row in rows),
        is_first=is_first,
    )


def _difference(caption: str, difference: Estimate) -> TunedTable:
    scale = _Scale.of([difference], line=0.0, sign="+")
    return TunedTable(
        caption=caption,
        rows=(_row(CALLED["model"], difference, scale),),
        axis=scale.axis("no gain"),
        has_labels=False,
        has_pooled=False,
        is_first=True,
    )


@dataclass(frozen=True, kw_only=True)
class _Scale:
    """The common axis of the intervals of a table.

    Attributes:
        marks: Round values from its one end to the other.
        line: A value to compare with; None for none.
        sign: ``+`` of differences.
    """

    marks: tuple[float, ...]
    line: float | None
    sign: str = ""

    @classmethod
    def of(cls, found: Sequence[Estimate], *, line: float | None, sign: str = "") -> _Scale:
        ends = [e for i in found for e in (i.value, i.low, i.high, i.t_low, i.t_high)]
        known = [end for end in (*ends, line) if end is not None]
        marks = nice_ticks(min(known), max(known)) if known else [0.0, 1.0]
        return cls(marks=tuple(marks), line=line, sign=sign)

    def place(self, value: float | None, *, if_open: int) -> float:
        """Where a value lies; at the axis' first or last mark if it has no bound."""
        shown = self.marks[if_open] if value is None else value
        return scaled(shown, (self.marks[0], self.marks[-1]), BAR)

    def axis(self, line_name: str) -> Axis:
        """As the template draws it."""
        ticks = tuple(
            Tick(at=self.place(v, if_open=0), text=f"{v:{self.sign}g}" if v else "0")
            for v in self.marks
        )
        name = "" if self.line is None else line_name
        return Axis(ticks=ticks, line=self.place(self.line, if_open=0), line_name=name)


def _row(
    predictor: str,
    found: Estimate | None,
    scale: _Scale,
    *,
    label: str = "",
    pooled: float | None = None,
) -> TunedRow:
    is_ours = predictor == CALLED["model"]
    on_all = "" if pooled is None else f"{pooled:.3f}"
    if found is None:
        return TunedRow(
            predictor=predictor, label=label, estimate="no value", pooled=on_all, is_ours=is_ours
        )
    sign = scale.sign
    return TunedRow(
        predictor=predictor,
        label=label,
        estimate=f"{found.value:{sign}.3f}",
        bootstrap=_ends(found.low, found.high, sign),
        t=_ends(found.t_low, found.t_high, sign),
        pooled=on_all,
        n_patients=found.n_patients,
        is_unreliable=found.is_unreliable,
        is_ours=is_ours,
        bar=Bar(
            low=scale.place(found.low, if_open=0),
            high=scale.place(found.high, if_open=-1),
            t_low=scale.place(found.t_low, if_open=0),
            t_high=scale.place(found.t_high, if_open=-1),
            at=scale.place(found.value, if_open=0),
        ),
    )


def _ends(low: float | None, high: float | None, sign: str) -> str:
    told = ("no bound" if end is None else f"{end:{sign}.3f}" for end in (low, high))
    return " to ".join(told)


def _fold(row: FoldRow, first: Sequence[Score]) -> FoldLine:
    sides = tuple(f"{row.slides.get(s, 0)} of {row.patients.get(s, 0)}" for s in SIDES)
    early = ", ended early" if row.ended_early else ""
    kept = "" if row.kept_step in {None, row.steps} else f", kept {row.kept_step:,}"
    found = (score.of_fold.get(row.name) for score in first)
    return FoldLine(
        name=row.name,
        sides=sides,
        steps=f"{row.steps:,}{kept}{early}",
        values=tuple("none" if value is None else f"{value:.3f}" for value in found),
    )


def _chart(run: TunedRun) -> Chart | None:
    """Loss on the validation patients after each epoch, the mean over folds, beside training."""
    trained: list[list[float]] = []
    validated: list[list[float]] = []
    for path in sorted(run.folder.glob("fold-*/metrics.jsonl")):
        losses: list[float] = []
        epoch = 0
        for row in read_metrics(path):
            losses.append(float(row["loss"]))
            if row.get("val_loss") is None:
                continue
            _put(trained, epoch, sum(losses) / len(losses))
            _put(validated, epoch, float(row["val_loss"]))
            epoch, losses = epoch + 1, []
    if len(validated) < 2:
        return None
    series = {
        "training": [sum(of) / len(of) for of in trained],
        "validation": [sum(of) / len(of) for of in validated],
    }
    return line_chart(
        "Loss",
        list(range(1, len(validated) + 1)),
        series,
        note="After each epoch, the mean over the folds that came so far.",
        x_name="epoch",
    )


def _put(lists: list[list[float]], place: int, value: float) -> None:
    if place == len(lists):
        lists.append([])
    lists[place].append(value)
