"""From features to predictions, and from predictions to scores and comparisons."""

# Shape suffixes: N tiles, D embedding width.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from anlage.evaluation.labelled_tiles import LabelledTiles
from anlage.evaluation.result import Comparison, Model, ProbeName, Score
from anlage.probes.linear.logistic import logistic_probe
from anlage.probes.metrics.classification import ACCURACY, BALANCED_ACCURACY
from anlage.probes.metrics.counts import group_counts
from anlage.probes.neighbours.knn import knn_probe
from anlage.probes.splits.split import Split
from anlage.probes.uncertainty.bootstrap import cluster_bootstrap
from anlage.probes.uncertainty.multiple_tests import holm
from anlage.probes.uncertainty.paired import paired_bootstrap
from anlage.probes.uncertainty.permutation import paired_permutation
from anlage.progress import meter

MODELS: tuple[Model, ...] = get_args(Model)
PROBES: tuple[ProbeName, ...] = get_args(ProbeName)


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """Predicted classes of all tiles, each made by a probe that did not train on its group.

    Attributes:
        tested: (T,) int64 rows of the tiles that were tested, rising.
        split_N: (N,) name of the split that tested each tile, str; empty if none did.
        label_N: (N,) predicted classes, str, by model and probe; empty if not tested.
        has_converged: Whether the solver finished in every split, by model and probe.
    """

    tested: NDArray[np.int64]
    split_N: NDArray[Any]
    label_N: Mapping[tuple[Model, ProbeName], NDArray[Any]]
    has_converged: Mapping[tuple[Model, ProbeName], bool]


def predict(
    features: Mapping[str, NDArray[np.float32]],
    label_N: NDArray[np.str_],
    splits: Sequence[Split],
    *,
    k: int,
    cost: float,
) -> Predictions:
    """Train each probe on the train side of each split and predict its test side.

    The linear probe weighs classes by their inverse frequency, since balanced accuracy is what is
    scored and a case left out takes tiles from its own class. The kNN probe standardises
    ``colour_texture``, whose features have unlike units, and nothing else.

    Args:
        features: (N, D) of each model.
        label_N: (N,) true classes.
        splits: Test sides do not overlap.
        k: Neighbours of the kNN probe.
        cost: Of the linear probe.
    """
    pairs = [(model, probe) for model in MODELS for probe in PROBES]
    predicted = {pair: np.full(len(label_N), "", dtype=label_N.dtype) for pair in pairs}
    converged = dict.fromkeys(pairs, True)
    split_N = np.full(len(label_N), "", dtype=object)
    with meter("probe", total=len(splits), unit="splits") as progress:
        for split in splits:
            split_N[split.test] = split.name
            for model in MODELS:
                train, test = features[model][split.train], features[model][split.test]
                label = label_N[split.train]
                head = logistic_probe(train, label, cost=cost, balance_classes=True)
                linear = head.predict(test)
                is_mixed = model == "colour_texture"
                knn = knn_probe(train, label, test, k=k, standardise=is_mixed)
                predicted[model, "linear"][split.test] = linear.label_N
                predicted[model, "knn"][split.test] = knn.label_N
                converged[model, "linear"] &= linear.has_converged
            progress.advance()
    tested = np.sort(np.concatenate([split.test for split in splits]))
    return Predictions(tested=tested, split_N=split_N, label_N=predicted, has_converged=converged)


def scores_of(
    tiles: LabelledTiles, predictions: Predictions, *, n_resamples: int, seed: int
) -> list[Score]:
    """Score every model under every probe, on the tiles that were tested."""
    rows = predictions.tested
    truth, group = tiles.label_N[rows], tiles.group_N[rows]
    scores = []
    for (model, probe), label_N in predictions.label_N.items():
        predicted = label_N[rows]
        columns = (truth, predicted)
        interval = cluster_bootstrap(
            BALANCED_ACCURACY, columns, group, n_resamples=n_resamples, seed=seed
        )
        scores.append(
            Score(
                model=model,
                probe=probe,
                balanced_accuracy=interval,
                accuracy=ACCURACY(truth, predicted),
                group_accuracy=_by_group(truth, predicted, group),
                has_converged=predictions.has_converged[model, probe],
            )
        )
    return scores


def comparisons_of(
    tiles: LabelledTiles, predictions: Predictions, *, n_resamples: int, seed: int
) -> list[Comparison]:
    """Compare the encoder with each floor under each probe, on the tiles that were tested."""
    rows = predictions.tested
    truth, group = tiles.label_N[rows], tiles.group_N[rows]
    differences, p_values, by_group = {}, [], {}
    for probe in PROBES:
        ours = (truth, predictions.label_N["encoder", probe][rows])
        for floor in MODELS[1:]:
            theirs = (truth, predictions.label_N[floor, probe][rows])
            pair = floor, probe
            differences[pair] = paired_bootstrap(
                BALANCED_ACCURACY, ours, theirs, group, n_resamples=n_resamples, seed=seed
            )
            test = paired_permutation(BALANCED_ACCURACY, ours, theirs, group, seed=seed)
            p_values.append(test.p_value)
            floor_accuracy = _by_group(*theirs, group)
            by_group[pair] = {
                name: value - floor_accuracy[name]
                for name, value in _by_group(*ours, group).items()
            }
    return [
        Comparison(
            floor=pair[0],
            probe=pair[1],
            difference=difference,
            p_adjusted=p_adjusted,
            group_difference=by_group[pair],
        )
        for (pair, difference), p_adjusted in zip(
            differences.items(), holm(p_values).tolist(), strict=True
        )
    ]


def _by_group(
    truth: NDArray[Any], predicted: NDArray[Any], group: NDArray[Any]
) -> dict[str, float]:
    counts = group_counts(truth, predicted, group)
    return dict(zip(counts.group_G.tolist(), counts.group_accuracy().tolist(), strict=True))
