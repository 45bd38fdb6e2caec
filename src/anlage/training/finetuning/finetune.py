"""Fine-tuning: bags and labels in; a model, predictions and a result a fold out."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anlage.bags.slide_labels import SlideLabels
from anlage.errors import CheckpointError
from anlage.files import write_text_whole
from anlage.provenance import git_commit, name_alone, versions
from anlage.training.finetuning.config import FinetuneConfig
from anlage.training.finetuning.floors import mean_pool_scores, prior_scores
from anlage.training.finetuning.fold import PREDICTIONS, FoldEnd, train_fold
from anlage.training.finetuning.folds import table_of_folds
from anlage.training.finetuning.notes import leakage_of, notes_of
from anlage.training.finetuning.predictions import join_predictions, read_predictions
from anlage.training.finetuning.preparation import Prepared, prepare
from anlage.training.finetuning.result import (
    FinetuneResult,
    FoldRow,
    LeftOut,
    Predictor,
    write_result,
)
from anlage.training.finetuning.scores import Scored
from anlage.training.finetuning.scoring import Draws, difference_of, rows_of_folds, scores_of
from anlage.training.finetuning.targets import Targets
from anlage.training.finetuning.task_config import SURVIVAL
from anlage.training.run_record import (
    compare_records,
    read_record,
    record_of,
    refuse_existing_run,
    write_record,
)
from anlage.training.run_start import hold_folder
from anlage.training.stopping import stop_on_signals

LOGGER = logging.getLogger(__name__)
STAGE = "finetune"
FREE = ("engine.",)  # dropout is drawn by parts, so accumulate is not free here
SAME = {"labels": "labels", "splits": "folds", "slide_encoder": "slide encoder"}


@dataclass(frozen=True, slots=True)
class FinetuneEnd:
    """How a fine-tuning run ended.

    Attributes:
        run_dir: The run's folder.
        result: What it found; None if a signal stopped it before the last fold.
        refused: Labelled slides without a usable bag.
        folds_done: Finished folds.
    """

    run_dir: Path
    result: FinetuneResult | None
    refused: list[LeftOut]
    folds_done: int


def finetune(
    config: FinetuneConfig,
    bags: str | Path,
    labels: SlideLabels | str | Path,
    run_dir: str | Path,
    *,
    resume: bool = False,
    splits: str | Path | None = None,
    device: str = "auto",
    threads: int = 2,
) -> FinetuneEnd:
    """Fine-tune a slide model on each fold of whole patients and score it on its test side.

    A run that was killed at any moment goes on with ``resume``: finished folds stay, the running
    one goes on from its last epoch; on CPU the result is the same to the bit.

    Args:
        config: The recipe, from ``load_recipe(name, FinetuneConfig)``.
        bags: Folder or URL of bags of one tile encoder.
        labels: Table of slides with their labels (CSV, TSV, Parquet, catalogue).
        run_dir: Folder of the run.
        resume: Go on with the run that is there.
        splits: Table of patients or slides and their sides, in place of ``config.folds``.
        device: ``auto`` (CUDA if there is one), ``cpu``, ``cuda`` or ``cuda:1``.
        threads: Threads that read bags.

    Returns:
        The result, as stored in ``result.json``.

    Raises:
        BagError: If bags are of several encoders, or of another one than the slide encoder takes.
        CatalogueError: If the labels cannot be used, or a fold cannot be trained.
        CheckpointError: If there is a run and ``resume`` is false, or it is of another recipe,
            other bags, labels, folds or slide encoder.
        LabelledDataError: If the table of splits cannot be used.
        TrainingError: If a loss is not finite.
    """
    run_dir = Path(run_dir)
    if not resume:
        refuse_existing_run(run_dir)
    with ExitStack() as held:
        prepared = prepare(config, bags, labels, splits=splits, device=device, threads=threads)
        hold_folder(run_dir, held)
        record = _claim(config, prepared, run_dir)
        stop = held.enter_context(stop_on_signals())
        material = replace(prepared.material, provenance=_provenance(record, prepared))
        ends: list[FoldEnd] = []
        for number, split in enumerate(prepared.splits):
            folder = run_dir / f"fold-{number}"
            end = train_fold(config, material, split, folder, number=number, stop=stop)
            if not end.is_finished:
                return FinetuneEnd(run_dir, None, prepared.refused, len(ends))
            ends.append(end)
            LOGGER.info("fold %d of %d done", number + 1, len(prepared.splits))
        result = _result(_told(config, record), prepared, ends)
        join_predictions(run_dir / PREDICTIONS, [end.folder / PREDICTIONS for end in ends])
        write_result(run_dir, result)
    return FinetuneEnd(run_dir, result, prepared.refused, len(ends))


def _claim(config: FinetuneConfig, prepared: Prepared, run_dir: Path) -> dict[str, Any]:
    """Take a new folder, or check that an old one is of this run; gives the run's record."""
    facts = {"stage": STAGE, **prepared.data}
    old = read_record(run_dir)
    record = record_of(_told(config, old), facts, n_ranks=1)
    if old is None:
        table = table_of_folds(prepared.splits, prepared.material.targets)
        write_text_whole(run_dir / "splits.csv", table.text)
        write_record(run_dir, record)
        return record
    compare_records(run_dir, old=old, new=record, free=FREE)
    for name, what in SAME.items():
        if old.get(name) != record[name]:
            msg = f"needs the {what} it began with; got others. Start a new run folder."
            raise CheckpointError(run_dir, msg)
    return old


def _told(config: FinetuneConfig, old: dict[str, Any] | None) -> FinetuneConfig:
    """The recipe as files tell it: the slide encoder without its folder.

    A run that goes on keeps the name that it began with, wherever the encoder lies now; it is the
    same by its fingerprint.
    """
    choice = config.model.slide_encoder
    if choice is None or choice.init is None:
        return config
    name = name_alone(choice.init)
    if old is not None and old.get("slide_encoder") is not None:
        name = old["config"]["model"]["slide_encoder"]["init"]
    told = choice.model_copy(update={"init": name})
    model = config.model.model_copy(update={"slide_encoder": told})
    return config.model_copy(update={"model": model})


def _provenance(record: dict[str, Any], prepared: Prepared) -> dict[str, Any]:
    """What a model's folder tells of its run: all of the record, and who taught its encoders."""
    encoder = prepared.material.encoder
    below = {} if encoder is None else {"slide_encoder_provenance": encoder.config.provenance}
    return {**json.loads(json.dumps(record)), **below}


def _result(config: FinetuneConfig, prepared: Prepared, ends: Sequence[FoldEnd]) -> FinetuneResult:
    targets, splits = prepared.material.targets, prepared.splits
    means = {split.name: mean_pool_scores(targets, split, prepared.means) for split in splits}
    predicted = _predicted(prepared, ends, means)
    draws = Draws(n_resamples=config.resamples, seed=config.seed)
    scores = scores_of(targets, predicted, draws)
    difference = None
    if "mean_pool" in predicted:
        difference = difference_of(targets, predicted["model"], predicted["mean_pool"], draws)
    rows = [
        FoldRow(
            name=split.name,
            slides={side: len(of_side) for side, of_side in split.sides.items()},
            patients={
                side: len(np.unique(targets.patient_N[of_side]))
                for side, of_side in split.sides.items()
            },
            steps=end.steps,
            kept_step=end.kept_step,
            ended_early=end.ended_early,
        )
        for split, end in zip(splits, ends, strict=True)
    ]
    return FinetuneResult(
        task=config.task.model_dump(mode="json"),
        task_name=config.task.name,
        classes=_counts(targets, prepared.rows),
        n_slides=len(prepared.rows),
        n_patients=len(np.unique(targets.patient_N[prepared.rows])),
        n_without_patient=prepared.n_without_patient,
        folds=rows,
        scores=scores,
        difference=difference,
        leakage=leakage_of(prepared),
        notes=notes_of(
            config,
            prepared,
            scores,
            difference,
            unprobed=[name for name, score_NP in means.items() if score_NP is None],
        ),
        refused=prepared.refused,
        passed_over=prepared.passed_over,
        config=config.model_dump(mode="json"),
        data=prepared.data,
        versions=versions(),
        commit=git_commit(),
    )


def _predicted(
    prepared: Prepared,
    ends: Sequence[FoldEnd],
    means: Mapping[str, NDArray[np.float64] | None],
) -> dict[Predictor, Scored]:
    """Test rows of the model and of each floor that could be made."""
    targets, splits = prepared.material.targets, prepared.splits
    pairs = list(zip(splits, ends, strict=True))
    scores = {
        split.name: read_predictions(end.folder / PREDICTIONS, targets).of_side("test")[1]
        for split, end in pairs
    }
    priors = {split.name: prior_scores(targets, split) for split in splits}
    found: dict[Predictor, Scored | None] = {
        "model": rows_of_folds(targets, splits, scores),
        "mean_pool": rows_of_folds(targets, splits, means),
        "prior": rows_of_folds(targets, splits, priors),
    }
    return {name: data for name, data in found.items() if data is not None}


def _counts(targets: Targets, rows: NDArray[np.int64]) -> dict[str, int]:
    """Slides of each class, or with each label; events of survival."""
    target_NK, kind = targets.target_NK[rows], targets.task.kind
    if kind in SURVIVAL:
        return {"with an event": int(target_NK[:, 1].sum())}
    if kind == "multi_label":
        n_positive = np.nansum(target_NK, axis=0).astype(int).tolist()
        return dict(zip(targets.classes, n_positive, strict=True))
    codes = target_NK[:, 0] if targets.classes else np.empty(0)
    return {name: int((codes == code).sum()) for code, name in enumerate(targets.classes)}
