"""What a reader should take away of the stages over slides."""

from __future__ import annotations

from collections.abc import Iterator

from anlage.encoders.leakage import Leakage
from anlage.report.contents import Contents
from anlage.report.line_chart import short_number
from anlage.report.slide_parts import SlideParts
from anlage.report.slide_training_section import held_out_errors
from anlage.report.verdict import Kind, Verdict
from anlage.training.finetuning.result import FinetuneResult, Predictor

FLOORS: dict[Predictor, str] = {
    "mean_pool": "a linear probe on the mean tile",
    "prior": "training frequencies",
}
SHORT_WORDS = frozenset(("auroc", "auprc", "f1", "rmse", "mae", "mse", "r2", "ovr", "auc"))


def slide_verdicts(contents: Contents) -> Iterator[Verdict]:
    """Masked error beside its floors; each fine-tuned task beside its own; who was seen before."""
    pretrained = pretraining_verdict(contents.over_slides)
    if pretrained is not None:
        yield pretrained
    for tuned in contents.over_slides.tuned:
        if tuned.result is None:
            yield Verdict(kind="care", text="Fine-tuning is not finished: it has no result yet.")
        else:
            yield from _tuned(tuned.result)


def metric_name(metric: str) -> str:
    """A metric as a reader says it: ``AUROC macro`` of ``auroc_macro``."""
    words = [word.upper() if word in SHORT_WORDS else word for word in metric.split("_")]
    return " ".join([words[0][:1].upper() + words[0][1:], *words[1:]])


def pretraining_verdict(parts: SlideParts) -> Verdict | None:
    """The error on held-out slides beside its floors; None where none was measured."""
    errors = held_out_errors(parts)
    if errors is None or parts.run is None:
        return None
    ours, mean, copy = errors
    n_slides = len(parts.run.get("held_out", []))
    is_below = ours < min(mean, copy)
    said = "is below both floors" if is_below else "is not below its floors"
    text = (
        f"Slide encoder: the error of hidden tiles on {n_slides} held-out slides {said}: "
        f"{short_number(ours)}, against {short_number(mean)} for the mean of the visible tiles and "
        f"{short_number(copy)} for a copy of the nearest."
    )
    return Verdict(kind="plain" if is_below else "care", text=text)


def _tuned(result: FinetuneResult) -> Iterator[Verdict]:
    first = result.scores[0]
    found = {
        score.predictor: score.mean_of_folds
        for score in result.scores
        if (score.metric, score.label) == (first.metric, first.label)
    }
    model = found.get("model")
    metric = f"{metric_name(first.metric)} {first.label}".strip()
    if model is None:
        text = f"{result.task_name}: {metric} has no value in any fold."
        yield Verdict(kind="care", text=text)
        return
    beside = [
        f"{value.value:.2f} for {called}"
        for name, called in FLOORS.items()
        if (value := found.get(name)) is not None
    ]
    told = f"; {', '.join(beside)}" if beside else ""
    folds = f"mean of {len(result.folds)} folds, {model.n_patients} patients"
    text = f"Fine-tuned on {result.task_name}: {metric} {model.value:.2f}, {folds}{told}."
    yield Verdict(kind="plain", text=text)
    if model.is_unreliable:
        text = f"Unreliable: {model.n_patients} patients are too few, so nothing follows from it."
        yield Verdict(kind="care", text=text)
    yield from _seen_before(result)


def _seen_before(result: FinetuneResult) -> Iterator[Verdict]:
    """Which encoders saw tested patients; those of which the same is true in one line."""
    by_text: dict[str, list[str]] = {}
    kinds: dict[str, Kind] = {}
    for name, leakage in result.leakage.items():
        text = _leakage_in_words(leakage)
        kinds[text] = "good" if leakage.is_known and not leakage.seen else "care"
        by_text.setdefault(text, []).append(name)
    for text, names in by_text.items():
        yield Verdict(kind=kinds[text], text=text.format(" and the ".join(names)))


def _leakage_in_words(leakage: Leakage) -> str:
    """What was seen, with {} where the encoder is named."""
    if not leakage.is_known:
        return "It is not known whether tested patients were seen by the {} in pretraining."
    if not leakage.seen:
        n = leakage.n_groups
        return f"None of the {n} tested patients was seen by the {{}} in pretraining."
    seen = f"{len(leakage.seen)} of {leakage.n_groups} tested patients were seen"
    if leakage.chosen_by:
        return f"{seen} before, and the labels of {len(leakage.chosen_by)} chose the {{}}."
    return f"{seen}, without labels, by the {{}} in pretraining."
