"""What a fine-tuned model predicts, as it stands in a recipe."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from anlage.objectives.slide_ordinal import Link
from anlage.objectives.slide_regression import Penalty
from anlage.objectives.slide_survival import Ties
from anlage.training.section import Section

Kind = Literal[
    "binary",
    "multi_class",
    "multi_label",
    "ordinal",
    "survival_cox",
    "survival_discrete",
    "regression",
]
Unit = Literal["slide", "largest_slide", "patient"]
SURVIVAL = ("survival_cox", "survival_discrete")
LOSSES = {
    "link": "ordinal",
    "ties": "survival_cox",
    "censored_weight": "survival_discrete",
    "penalty": "regression",
}
FOR_EXAMPLE = "such as --set task.target=LABEL"


class Task(Section):
    """One task on slides or patients.

    Attributes:
        kind: ``binary``, ``multi_class``, ``multi_label`` (several yes/no columns, gaps left out),
            ``ordinal`` (grades in order), ``survival_cox``, ``survival_discrete``, ``regression``.
        target: Column of the labels; several of ``multi_label``; none of survival.
        classes: Values of the column, in order; slides of other values are left out and counted.
            None takes those that there are, sorted; ``ordinal`` needs them unless grades are
            integers. Of ``binary`` the second is the positive one.
        positive: The positive value: of ``binary`` in place of ``classes``, of ``multi_label`` in
            every column (1, true and yes are taken without it).
        threshold: Of ``binary``: the column holds numbers, and positive is at or above this one
            (TMB high or low).
        time: Column of the follow-up (survival), in any one unit, 0 or more.
        event: Column that is 1 where the event was seen and 0 where follow-up ended first.
        intervals: Spans of time of ``survival_discrete``, cut at quantiles of the training events.
        class_weights: ``balanced`` weighs a class by n / (classes * its slides) of the training
            side; of ``multi_label`` the positives of each column by negatives / positives.
        link: Of ``ordinal``: ``coral``, or ``cumulative`` (proportional odds).
        ties: Of ``survival_cox``, how events at one time share their risk set.
        censored_weight: Of ``survival_discrete``: weight of censored slides, 1 - alpha of MCAT.
        penalty: Of ``regression``: ``mse``, or ``huber``, linear beyond one deviation.
        unit: ``slide``: each slide has its label and its prediction; ``largest_slide``: of each
            patient the slide with most tiles (GigaPath's mutations); ``patient``: all slides of a
            patient train by its label, and the mean of their predictions is the patient's.
    """

    kind: Kind
    target: str | tuple[str, ...] | None = None
    classes: tuple[str, ...] | None = None
    positive: str | None = None
    threshold: float | None = None
    time: str | None = None
    event: str | None = None
    intervals: Annotated[PositiveInt, Field(ge=2)] = 4
    class_weights: Literal["none", "balanced"] = "none"
    link: Link = "coral"
    ties: Ties = "efron"
    censored_weight: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    penalty: Penalty = "mse"
    unit: Unit = "slide"

    @model_validator(mode="before")
    @classmethod
    def _values_are_text(cls, given: object) -> object:
        """YAML makes numbers of grades; labels are compared as text."""
        if not isinstance(given, dict):
            return given
        told = dict(given)
        if isinstance(told.get("classes"), list | tuple):
            told["classes"] = [plain_value(value) for value in told["classes"]]
        if told.get("positive") is not None:
            told["positive"] = plain_value(told["positive"])
        return told

    @model_validator(mode="after")
    def _columns_fit_the_kind(self) -> Self:
        if self.kind in SURVIVAL:
            if self.time is None or self.event is None or self.target is not None:
                msg = f"kind={self.kind} needs time and event, the columns, and task.target=null"
                raise ValueError(msg)
        elif self.time is not None or self.event is not None:
            msg = f"time and event are of survival; got kind={self.kind}. Leave them out"
            raise ValueError(msg)
        elif not self.target:
            msg = f"kind={self.kind} needs target, the column of the labels, {FOR_EXAMPLE}"
            raise ValueError(msg)
        if isinstance(self.target, tuple) and self.kind != "multi_label":
            msg = f"several targets are of multi_label; got kind={self.kind}. Name one column"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _losses_are_of_their_kind(self) -> Self:
        for name, kind in LOSSES.items():
            if kind != self.kind and getattr(self, name) != type(self).model_fields[name].default:
                msg = f"{name} is of kind={kind}; got kind={self.kind}. Leave it out"
                raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _weights_are_of_classes(self) -> Self:
        if self.class_weights != "none" and self.kind in {*SURVIVAL, "regression"}:
            told = f"class_weights are of classes, grades and labels; got kind={self.kind}"
            msg = f"{told}. Set class_weights=none"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _classes_fit_the_kind(self) -> Self:
        if self.threshold is not None and (self.kind != "binary" or self.classes or self.positive):
            msg = "threshold is of kind=binary, and makes the classes low and high itself"
            raise ValueError(msg)
        if self.positive is not None and (self.kind not in {"binary", "multi_label"}):
            msg = f"positive is of binary and multi_label; got kind={self.kind}. Leave it out"
            raise ValueError(msg)
        if self.classes is None:
            return self
        if self.kind not in {"binary", "multi_class", "ordinal"}:
            msg = f"classes are of binary, multi_class and ordinal; got kind={self.kind}"
            raise ValueError(msg)
        n = len(self.classes)
        if len(set(self.classes)) < n or n < 2 or (self.kind == "binary" and n != 2):
            msg = f"classes need two different values or more (binary: two); got {self.classes}"
            raise ValueError(msg)
        if self.positive is not None and self.positive != self.classes[1]:
            msg = f"positive needs to be the second of classes {self.classes}. Give one of the two"
            raise ValueError(msg)
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the labels that the task reads."""
        if self.kind in SURVIVAL:
            assert self.time is not None
            assert self.event is not None
            return (self.time, self.event)
        assert self.target is not None
        return (self.target,) if isinstance(self.target, str) else self.target

    @property
    def name(self) -> str:
        """What it is called in results: the columns it predicts."""
        high = f" >= {self.threshold:g}" if self.threshold is not None else ""
        return ", ".join(self.columns) + high


def plain_value(value: object) -> str:
    """A label as it is compared: 3.0, which a column with gaps makes of 3, is 3; True is true."""
    text = str(value)
    if text.lower() in {"true", "false"}:
        return text.lower()
    return text.removesuffix(".0") if text.lstrip("-").removesuffix(".0").isdigit() else text
