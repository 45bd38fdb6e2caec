"""Labels as a task needs them: which slides it has, whose they are, and their targets as numbers.

Shape suffixes: N slides, K numbers of a target.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from anlage.bags.bag_set import BagSet
from anlage.bags.slide_labels import SlideLabels
from anlage.errors import CatalogueError
from anlage.training.finetuning.task_config import SURVIVAL, Task, plain_value

YES, NO = frozenset({"1", "1.0", "true", "yes"}), frozenset({"0", "0.0", "false", "no"})
MOST_CLASSES = 1000
N_BINS = 4  # of numbers, so that folds are alike in them

Text = str | None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Targets:
    """The slides of a task, in sorted order.

    Attributes:
        task: The task.
        slide_ids: Slides with a bag and a target, N of them.
        patient_N: (N,) whose each is.
        site_N: (N,) where each is from; None where the labels do not say it of all.
        target_NK: (N, K) float64. K is 1 for classes and grades (their number, from 0) and for
            numbers; the labels of ``multi_label``, 1, 0 or NaN where unknown; 2 of survival: time
            and event.
        classes: Names of the classes, grades or labels; empty of numbers and survival.
        left_out: Slides that the task does not take, by reason.
    """

    task: Task
    slide_ids: tuple[str, ...]
    patient_N: NDArray[np.str_]
    site_N: NDArray[np.str_] | None
    target_NK: NDArray[np.float64]
    classes: tuple[str, ...]
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.slide_ids)

    @property
    def n_patients(self) -> int:
        """Different patients."""
        return len(np.unique(self.patient_N))

    def strata(self) -> NDArray[np.str_]:
        """(N,) what is spread evenly over folds: class, pattern of labels, event, or quartile."""
        return _strata(self.task, self.target_NK)


def targets_of(task: Task, labels: SlideLabels, bags: BagSet) -> Targets:
    """The slides that have a bag and a target.

    Args:
        task: The task.
        labels: Its columns.
        bags: Bags, of which ``n_tiles`` decides the largest slide of a patient.

    Raises:
        CatalogueError: If a column is missing, values are not of the task, no two classes are
            left, all are censored, or a patient's slides contradict each other where the patient
            is the unit.
    """
    labels = labels.select(sorted(set(bags.slide_ids).intersection(labels.slide_ids)))
    classes, target_NK, reason_N = _numbers(task, labels)
    left_out: dict[str, list[str]] = {}
    for slide_id, reason in zip(labels.slide_ids, reason_N, strict=True):
        if reason:
            left_out.setdefault(reason, []).append(slide_id)
    row = np.array([number for number, reason in enumerate(reason_N) if not reason], dtype=int)
    patient_N = np.array([labels.patient_of[s] for s in labels.slide_ids], dtype=str)
    if task.unit != "slide":
        _refuse_contradictions(labels, patient_N[row], target_NK[row])
    if task.unit == "largest_slide":
        row, smaller = _largest(row, patient_N, labels.slide_ids, bags)
        left_out |= {"smaller than the patient's largest slide": smaller} if smaller else {}
    slide_ids = tuple(labels.slide_ids[number] for number in row)
    found = Targets(
        task=task,
        slide_ids=slide_ids,
        patient_N=patient_N[row],
        site_N=_sites(labels, slide_ids),
        target_NK=target_NK[row],
        classes=classes,
        left_out=left_out,
    )
    _refuse_untrainable(found, labels)
    return found


def _numbers(
    task: Task, labels: SlideLabels
) -> tuple[tuple[str, ...], NDArray[np.float64], list[str]]:
    """Names of the classes, (N, K) targets, and why each slide is left out (empty: it is not)."""
    if task.kind == "multi_label":
        columns = [_yes_or_no(task, labels, name) for name in task.columns]
        target_NK = np.stack(columns, axis=1)
        return task.columns, target_NK, _unknown(target_NK, all)
    if task.kind in SURVIVAL or task.kind == "regression" or task.threshold is not None:
        target_NK = np.stack([labels.numbers(name) for name in task.columns], axis=1)
        reasons = _unknown(target_NK, any)
        if task.threshold is not None:
            high_NK = np.where(np.isnan(target_NK), np.nan, target_NK >= task.threshold)
            return ("low", "high"), high_NK, reasons
        if task.kind in SURVIVAL:
            _refuse_no_survival(task, labels, target_NK)
        return (), target_NK, reasons
    return _classes(task, labels)


def _unknown(target_NK: NDArray[np.float64], of: Callable[[list[bool]], bool]) -> list[str]:
    return ["no label" if of(row) else "" for row in np.isnan(target_NK).tolist()]


def _classes(
    task: Task, labels: SlideLabels
) -> tuple[tuple[str, ...], NDArray[np.float64], list[str]]:
    name = task.columns[0]
    value_N = [_plain(value) for value in labels.column(name)]
    classes = task.classes or _classes_found(task, labels, value_N)
    number = {value: place for place, value in enumerate(classes)}
    target_N = [np.nan if value is None else number.get(value, np.nan) for value in value_N]
    reasons = [_reason(value, number) for value in value_N]
    return classes, np.array(target_N, dtype=np.float64)[:, None], reasons


def _reason(value: Text, number: dict[str, int]) -> str:
    if value is None:
        return "no label"
    return "" if value in number else f"of another class, {value}"


def _classes_found(task: Task, labels: SlideLabels, value_N: Sequence[Text]) -> tuple[str, ...]:
    found = sorted({value for value in value_N if value is not None})
    name = task.columns[0]
    is_whole = all(value.lstrip("-").isdigit() for value in found)
    if is_whole:
        found = sorted(found, key=int)
    if task.kind == "ordinal" and not is_whole:
        msg = f"column {name!r} needs grades that are integers; got {', '.join(found[:5])}. "
        raise CatalogueError(labels.path, f"{msg}Give their order as task.classes=[LOWEST, ...].")
    if task.kind == "binary" and task.positive is not None:
        if task.positive not in found:
            msg = f"column {name!r} needs the positive value {task.positive!r}; got "
            raise CatalogueError(labels.path, f"{msg}{', '.join(found[:5])}. Set task.positive.")
        found = [value for value in found if value != task.positive] + [task.positive]
    if task.kind == "binary" and len(found) != 2:
        msg = f"column {name!r} needs two values; got {len(found)}: {', '.join(found[:5])}. "
        told = "Choose two as task.classes=[NEGATIVE, POSITIVE], or cut numbers by task.threshold."
        raise CatalogueError(labels.path, msg + told)
    if not 2 <= len(found) <= MOST_CLASSES:
        msg = f"column {name!r} needs 2 to {MOST_CLASSES} classes; got {len(found)}. "
        raise CatalogueError(labels.path, f"{msg}Is it the column that you mean?")
    return tuple(found)


def _plain(value: Text) -> Text:
    return None if value is None else plain_value(value)


def _yes_or_no(task: Task, labels: SlideLabels, name: str) -> NDArray[np.float64]:
    values = []
    for slide_id, value in zip(labels.slide_ids, labels.column(name), strict=True):
        if value is None:
            values.append(np.nan)
        elif task.positive is not None:
            values.append(float(_plain(value) == task.positive))
        elif value.lower() in YES | NO:
            values.append(float(value.lower() in YES))
        else:
            msg = f"column {name!r} needs 1, 0 or nothing; got {value!r} for slide {slide_id!r}. "
            raise CatalogueError(labels.path, f"{msg}Name the positive value as task.positive.")
    return np.array(values, dtype=np.float64)


def _refuse_no_survival(task: Task, labels: SlideLabels, target_NK: NDArray[np.float64]) -> None:
    time, event = task.columns
    negative = np.flatnonzero(target_NK[:, 0] < 0)
    if len(negative):
        slide_id = labels.slide_ids[negative[0]]
        msg = f"column {time!r} needs times of 0 or more; got {target_NK[negative[0], 0]:g} for "
        raise CatalogueError(labels.path, f"{msg}slide {slide_id!r}. Correct it.")
    event_N = target_NK[~np.isnan(target_NK[:, 1]), 1]
    odd = event_N[~np.isin(event_N, (0, 1))]
    if len(odd):
        msg = f"column {event!r} needs 1 (event) and 0 (censored); got {odd[0]:g}. Correct it."
        raise CatalogueError(labels.path, msg)


def _refuse_contradictions(
    labels: SlideLabels, patient_N: NDArray[np.str_], target_NK: NDArray[np.float64]
) -> None:
    seen: dict[str, bytes] = {}
    for patient, target_K in zip(patient_N.tolist(), target_NK, strict=True):
        if seen.setdefault(patient, target_K.tobytes()) != target_K.tobytes():
            msg = f"gives the slides of patient {patient!r} different labels. Correct them, or "
            raise CatalogueError(labels.path, f"{msg}predict slides: task.unit=slide.")


def _largest(
    row: NDArray[np.int64], patient_N: NDArray[np.str_], slide_ids: Sequence[str], bags: BagSet
) -> tuple[NDArray[np.int64], list[str]]:
    """Rows of the slide with most tiles of each patient (the first by name of equals)."""
    n_tiles = dict(zip(bags.slide_ids, bags.n_tiles, strict=True))
    best: dict[str, int] = {}
    for number in row.tolist():
        patient = str(patient_N[number])
        held = best.get(patient)
        if held is None or n_tiles[slide_ids[number]] > n_tiles[slide_ids[held]]:
            best[patient] = number
    kept = set(best.values())
    smaller = [slide_ids[number] for number in row.tolist() if number not in kept]
    return np.array(sorted(kept), dtype=int), smaller


def _sites(labels: SlideLabels, slide_ids: Sequence[str]) -> NDArray[np.str_] | None:
    if not all(slide_id in labels.site_of for slide_id in slide_ids):
        return None
    return np.array([labels.site_of[slide_id] for slide_id in slide_ids], dtype=str)


def _refuse_untrainable(found: Targets, labels: SlideLabels) -> None:
    if len(found) < 2 or found.n_patients < 2:
        told = "; ".join(f"{len(ids)} with {why}" for why, ids in found.left_out.items())
        msg = f"needs two patients or more with a bag and a label; got {found.n_patients}"
        raise CatalogueError(labels.path, f"{msg} ({told or 'none left out'}). Check the columns.")
    task = found.task
    if task.kind in SURVIVAL and not found.target_NK[:, 1].any():
        msg = f"needs an event or more in {task.columns[1]!r}; all {len(found)} slides are "
        raise CatalogueError(labels.path, f"{msg}censored. Check that events are coded 1.")
    if task.kind in {"binary", "multi_class", "ordinal"}:
        counts = Counter(found.target_NK[:, 0].astype(int).tolist())
        absent = [name for number, name in enumerate(found.classes) if not counts[number]]
        if absent:
            msg = f"has no slide with a bag of class {', '.join(absent)} in {task.name!r}. "
            raise CatalogueError(labels.path, f"{msg}Leave the class out, or add slides.")
    if task.kind == "multi_label":
        _refuse_constant_labels(found, labels)


def _refuse_constant_labels(found: Targets, labels: SlideLabels) -> None:
    for name, target_N in zip(found.classes, found.target_NK.T, strict=True):
        known = set(target_N[~np.isnan(target_N)].tolist())
        if len(known) < 2:
            msg = f"needs slides with and without {name!r}; got only {sorted(known)}. "
            raise CatalogueError(labels.path, f"{msg}Leave the column out, or add slides.")


def _strata(task: Task, target_NK: NDArray[np.float64]) -> NDArray[np.str_]:
    if task.kind in SURVIVAL:
        return target_NK[:, 1].astype(int).astype(str)
    if task.kind == "regression":
        inner = np.quantile(target_NK[:, 0], np.arange(1, N_BINS) / N_BINS)
        return np.searchsorted(inner, target_NK[:, 0], side="right").astype(str)
    if task.kind == "multi_label":
        rows = np.nan_to_num(target_NK, nan=2).astype(int).astype(str)
        return np.array(["".join(row) for row in rows], dtype=str)
    return target_NK[:, 0].astype(int).astype(str)
