"""What a fine-tuned model has to beat: the training side's frequencies, and a probe on mean tiles.

Shape suffixes: N slides, M training slides, D width of a tile embedding, P numbers of a prediction.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anlage.bags.loader import BagCache
from anlage.errors import BagError
from anlage.probes.linear.logistic import logistic_probe
from anlage.probes.regression.cox import cox_probe_tuned
from anlage.probes.regression.ridge import ridge_probe_tuned
from anlage.probes.splits.split import Split
from anlage.training.finetuning.targets import Targets
from anlage.training.finetuning.task_config import SURVIVAL

LOGGER = logging.getLogger(__name__)
COST = 0.1  # of the data in the logistic probe, as of `anlage evaluate`
INNER_FOLDS = 5
ROWS = 1024  # tiles that are summed at a time
Floats = NDArray[np.float64]


def mean_tiles(
    cache: BagCache, slide_ids: Sequence[str], *, threads: int = 2
) -> tuple[dict[str, NDArray[np.float32]], list[BagError]]:
    """The mean tile of bags, all of which are read once: damaged ones are known from then on.

    Args:
        cache: The bags; it keeps what fits.
        slide_ids: Which of them.
        threads: Threads that read.

    Returns:
        (D,) means by slide, and what is wrong with each bag that has none.
    """

    def mean_of(slide_id: str) -> NDArray[np.float32] | BagError:
        try:
            return mean_tile(cache.take(slide_id).features_LD)
        except BagError as error:
            return error

    with ThreadPoolExecutor(threads) as pool:
        pairs = list(zip(slide_ids, pool.map(mean_of, slide_ids), strict=True))
    damaged = [mean for _, mean in pairs if isinstance(mean, BagError)]
    for error in damaged:
        LOGGER.warning("left out: %s", error)
    return {name: mean for name, mean in pairs if not isinstance(mean, BagError)}, damaged


def mean_tile(features_LD: Tensor) -> NDArray[np.float32]:
    """(D,) mean of (L, D) float16 tiles, summed in float64 without a copy of them all."""
    total_D = torch.zeros(features_LD.shape[1], dtype=torch.float64)
    for part_LD in torch.split(features_LD, ROWS):
        total_D += part_LD.sum(dim=0, dtype=torch.float64)
    return np.asarray((total_D / len(features_LD)).float().numpy())


def prior_scores(targets: Targets, split: Split) -> Floats:
    """(N, P) scores of the test side that say of each slide what is most frequent in training.

    Shares of classes and labels, the mean of numbers, and one risk for all.
    """
    kind, target_MK = targets.task.kind, targets.target_NK[split.train]
    if kind in SURVIVAL:
        one_P = np.zeros(1)
    elif kind in {"multi_class", "ordinal"}:
        one_P = np.array([(target_MK[:, 0] == code).mean() for code in range(len(targets.classes))])
    elif kind == "multi_label":
        known_MK = ~np.isnan(target_MK)
        one_P = np.nansum(target_MK, axis=0) / np.maximum(known_MK.sum(axis=0), 1)
    else:
        one_P = target_MK.mean(axis=0)
    return np.tile(one_P, (len(split.test), 1))


def mean_pool_scores(
    targets: Targets, split: Split, means: Mapping[str, NDArray[np.float32]]
) -> Floats | None:
    """(N, P) scores of the test side by a linear probe on mean tiles; None where none can be made.

    Logistic regression (classes, grades, each label; a fixed penalty), or ridge (numbers) or Cox
    (survival) with the penalty chosen on folds of the training patients. The test side has no part.

    Args:
        targets: The task's slides.
        split: The fold.
        means: (D,) mean tile of each slide.
    """
    row_ND = np.stack([means[slide_id] for slide_id in targets.slide_ids])
    try:
        return _probed(targets, row_ND, split)
    except ValueError as error:
        LOGGER.info("fold %s: no probe on mean tiles: %s", split.name, error)
        return None


def _probed(targets: Targets, row_ND: NDArray[np.float32], split: Split) -> Floats:
    kind, target_MK = targets.task.kind, targets.target_NK[split.train]
    train_MD, test_ND = row_ND[split.train], row_ND[split.test]
    patient_M = targets.patient_N[split.train]
    n_folds = min(INNER_FOLDS, len(np.unique(patient_M)))
    if kind in SURVIVAL:
        time_M, event_M = target_MK.T
        n_folds = min(n_folds, int(event_M.sum()))
        head = cox_probe_tuned(train_MD, time_M, event_M, patient_M, n_folds=n_folds)
        return np.asarray(head.risk(test_ND), dtype=np.float64)[:, None]
    if kind == "regression":
        ridge = ridge_probe_tuned(
            train_MD, target_MK[:, 0], patient_M, n_folds=n_folds, n_components=None
        )
        return np.asarray(ridge.predict(test_ND), dtype=np.float64)[:, None]
    if kind == "multi_label":
        columns = [_one_label(train_MD, target_M, test_ND) for target_M in target_MK.T]
        return np.stack(columns, axis=1)
    score_NP = _class_scores(train_MD, target_MK[:, 0].astype(int), test_ND, len(targets.classes))
    return score_NP[:, 1:] if kind == "binary" else score_NP


def _one_label(
    train_MD: NDArray[np.float32], target_M: Floats, test_ND: NDArray[np.float32]
) -> Floats:
    known = np.flatnonzero(~np.isnan(target_M))
    label_M = target_M[known].astype(int)
    if len(np.unique(label_M)) < 2:
        return np.full(len(test_ND), label_M.mean() if len(label_M) else 0.5)
    return _class_scores(train_MD[known], label_M, test_ND, 2)[:, 1]


def _class_scores(
    train_MD: NDArray[np.float32], label_M: NDArray[np.int64], test_ND: NDArray[np.float32], n: int
) -> Floats:
    predicted = logistic_probe(train_MD, label_M, cost=COST).predict(test_ND)
    score_NP = np.zeros((len(test_ND), n))
    score_NP[:, predicted.class_C.astype(int)] = predicted.score_NC
    return score_NP
