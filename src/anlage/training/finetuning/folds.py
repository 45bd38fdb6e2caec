"""The folds of a fine-tuning run: whole patients, validation inside training alone.

Shape suffixes: N slides.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anlage.bags.slide_labels import SlideLabels
from anlage.errors import CatalogueError, LabelledDataError
from anlage.probes.splits.fixed import given_folds, train_test
from anlage.probes.splits.grouped import grouped_folds, train_validation_test
from anlage.probes.splits.nested import inner_split
from anlage.probes.splits.site_preserving import site_preserving_folds
from anlage.probes.splits.split import SIDES, Split, group_name
from anlage.probes.splits.tables import (
    SplitTable,
    parse_split_table,
    splits_from_table,
    splits_to_table,
)
from anlage.training.finetuning.config import FinetuneConfig
from anlage.training.finetuning.scores import first_score, perfect_scores
from anlage.training.finetuning.targets import Targets
from anlage.training.finetuning.task_config import SURVIVAL

LOGGER = logging.getLogger(__name__)
RARE = "rare"
NO_CHOICE = "choice={keep: last, patience: null}"
BY_PATIENT = frozenset({"patient_id", "case_id", "case", "patient", "group"})


def folds_of(
    config: FinetuneConfig,
    targets: Targets,
    labels: SlideLabels,
    *,
    splits: str | Path | None = None,
) -> list[Split]:
    """The divisions of a task's slides that a run trains and tests, one model each.

    Where the recipe chooses an epoch and a division has no validation side, whole patients of its
    training side are set apart for it; the test side has no part in any choice.

    Args:
        config: The recipe.
        targets: The slides.
        labels: The table they are from, which may hold the column of the sides.
        splits: Table of patients or slides and their sides, in place of ``config.folds``; slides
            that it does not name are left out and logged.

    Raises:
        CatalogueError: If a patient is on two sides or at two sites, a side is empty, there are
            fewer patients than folds, the training side of a fold has one class or no event, or
            its validation side has none to choose an epoch by.
        LabelledDataError: If the table of splits cannot be used.
    """
    try:
        if splits is not None:
            found = _from_file(Path(splits), targets)
        else:
            found = _drawn(config, targets, labels)
        found = [_with_validation(config, split, targets) for split in found]
    except ValueError as error:
        raise CatalogueError(labels.path, str(error)) from error
    for split in found:
        split.refuse_cut_groups(targets.patient_N)
        _refuse_untrainable(split, targets, labels)
        _refuse_no_choice(config, split, targets, labels)
    return found


def rows_on_sides(splits: Sequence[Split]) -> NDArray[np.int64]:
    """Rows of the slides that are on some side of some fold, sorted."""
    return np.unique(np.concatenate([rows for split in splits for rows in split.sides.values()]))


def table_of_folds(splits: Sequence[Split], targets: Targets) -> SplitTable:
    """The folds by slide with all their sides, in the form that ``--splits`` takes."""
    return splits_to_table(splits, targets.slide_ids, key_column="slide_id")


def _drawn(config: FinetuneConfig, targets: Targets, labels: SlideLabels) -> list[Split]:
    folds, seed = config.folds, config.seed
    group_N = targets.patient_N
    if folds.kind == "column":
        assert folds.column is not None
        return _from_column(folds.column, targets, labels)
    if folds.kind == "sites":
        if targets.site_N is None:
            msg = "folds of sites need a column 'site' with a value for each slide. Add it."
            raise CatalogueError(labels.path, msg)
        return site_preserving_folds(
            _strata(targets, 2), group_N, targets.site_N, n_folds=folds.n, seed=seed, fewest_sites=1
        )
    if folds.kind == "random":
        return [_random(config, targets, number) for number in range(folds.n)]
    label_N = _strata(targets, folds.n)
    return grouped_folds(label_N, group_N, n_folds=folds.n, seed=seed, fewest_groups=1)


def _random(config: FinetuneConfig, targets: Targets, number: int) -> Split:
    drawn = train_validation_test(
        _strata(targets, 2),
        targets.patient_N,
        validation=config.folds.validation,
        test=config.folds.test,
        seed=config.seed + number,
        fewest_groups=1,
    )
    sides = {"train": drawn.train, "validation": drawn.validation, "test": drawn.test}
    return Split(name=str(number), **sides)


def _from_column(name: str, targets: Targets, labels: SlideLabels) -> list[Split]:
    value_of = dict(zip(labels.slide_ids, labels.column(name), strict=True))
    value_N = np.array([value_of[slide_id] or "" for slide_id in targets.slide_ids], dtype=str)
    row = np.flatnonzero(value_N != "")
    if not len(row):
        msg = f"has no value in column {name!r} for any slide of the task. Fill it in."
        raise CatalogueError(labels.path, msg)
    group_N, value_N = targets.patient_N[row], value_N[row]
    is_of_sides = {value.strip().lower() for value in value_N.tolist()} <= set(SIDES)
    found = train_test(value_N, group_N) if is_of_sides else given_folds(value_N, group_N)
    return [
        Split(name=s.name, train=row[s.train], test=row[s.test], validation=row[s.validation])
        for s in found
    ]


def _from_file(path: Path, targets: Targets) -> list[Split]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        table = parse_split_table(text)
        key_N = targets.patient_N if table.key_column in BY_PATIENT else _ids(targets)
        names = {group_name(key) for key in key_N.tolist()}
        absent = sorted(names - set(table.keys))
        found = splits_from_table(table, key_N, targets.patient_N, is_exact=False)
    except OSError as error:
        told = f"cannot be read ({error.strerror}). Name a CSV or TSV of splits."
        raise LabelledDataError(path, told) from error
    except ValueError as error:
        raise LabelledDataError(path, str(error)) from error
    if absent:
        told = "%s does not name %d of the %ss, such as %s: left out"
        LOGGER.warning(told, path, len(absent), table.key_column, ", ".join(absent[:3]))
    return found


def _ids(targets: Targets) -> NDArray[np.str_]:
    return np.array(targets.slide_ids, dtype=str)


def _strata(targets: Targets, fewest: int) -> NDArray[np.str_]:
    """Strata of the slides; those of fewer patients than ``fewest`` are one together."""
    stratum_N = targets.strata().astype(object)
    if targets.task.kind != "multi_label":
        return stratum_N.astype(str)
    pairs = set(zip(stratum_N.tolist(), targets.patient_N.tolist(), strict=True))
    counts = Counter(stratum for stratum, _ in pairs)
    return np.array([s if counts[s] >= fewest else RARE for s in stratum_N.tolist()], dtype=str)


def _with_validation(config: FinetuneConfig, split: Split, targets: Targets) -> Split:
    if not config.choice.needs_validation or len(split.validation):
        return split
    return inner_split(
        split,
        _strata(targets, 2),
        targets.patient_N,
        share=config.folds.inner,
        seed=config.seed,
        fewest_groups=1,
    )


def _refuse_untrainable(split: Split, targets: Targets, labels: SlideLabels) -> None:
    """Refuse a training side that nothing can be learned from."""
    kind, target_MK = targets.task.kind, targets.target_NK[split.train]
    if kind in SURVIVAL:
        if not target_MK[:, 1].any():
            msg = f"fold {split.name}: all {len(target_MK)} training slides are censored"
            raise CatalogueError(labels.path, f"{msg}. Choose other folds, or add patients.")
        return
    if kind == "regression":
        if len(np.unique(target_MK)) < 2:
            msg = f"fold {split.name}: all training slides have the value {target_MK[0, 0]:g}"
            raise CatalogueError(labels.path, f"{msg}. Choose other folds, or add patients.")
        return
    if kind == "multi_label":
        return  # a label that a fold lacks is masked or constant, and told of beside its score
    seen = np.unique(target_MK[:, 0])
    if len(seen) < 2:
        only = targets.classes[int(seen[0])]
        msg = f"fold {split.name}: its training side has one class only, {only!r}"
        raise CatalogueError(labels.path, f"{msg}. Ask for fewer folds, or add patients.")


def _refuse_no_choice(
    config: FinetuneConfig, split: Split, targets: Targets, labels: SlideLabels
) -> None:
    """Refuse a validation side on which what chooses the epoch has no value."""
    if not config.choice.needs_validation:
        return
    kind, target_VK = targets.task.kind, targets.target_NK[split.validation]
    by_score = config.choice.by == "score"
    if kind in SURVIVAL and not target_VK[:, 1].any():
        msg = f"fold {split.name}: all {len(target_VK)} validation slides are censored"
        raise CatalogueError(labels.path, f"{msg}. Set folds.inner higher, or {NO_CHOICE}.")
    seen = np.unique(target_VK[:, 0])
    if kind in {"binary", "multi_class"} and by_score and len(seen) < 2:
        only = targets.classes[int(seen[0])]
        msg = f"fold {split.name}: its validation side has one class only, {only!r}, and no score"
        raise CatalogueError(labels.path, f"{msg}. Set choice.by=loss, or folds.inner higher.")
    if by_score or kind == "survival_cox":  # whose loss compares the same pairs
        _refuse_no_score(split, targets, labels)


def _refuse_no_score(split: Split, targets: Targets, labels: SlideLabels) -> None:
    """Refuse a validation side on which not even a perfect model has a score."""
    perfect_VP = perfect_scores(targets, split.validation)
    name, value, _ = first_score(targets, split.validation, perfect_VP)
    if np.isfinite(value):
        return
    told = (
        f"fold {split.name}: {name} has no value on its {len(split.validation)} validation slides: "
        "a class is missing, nothing varies, or no event has a later slide to compare with"
    )
    remedy = NO_CHOICE if targets.task.kind == "survival_cox" else "choice.by=loss"
    raise CatalogueError(labels.path, f"{told}. Set folds.inner higher, or {remedy}.")
