"""Models compared on one task: which are the same within noise."""

# Shape suffixes: N rows, K models.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from anlage.probes.checks import Rows
from anlage.probes.metrics.metric import Metric
from anlage.probes.uncertainty.critical_difference import adjusted_pairs, runs_not_apart
from anlage.probes.uncertainty.interval import FEWEST_RELIABLE_GROUPS
from anlage.probes.uncertainty.paired import paired_bootstrap


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class NoiseGroups:
    """Models on one task, the best first, and those that are the same within noise.

    Attributes:
        model_K: (K,) names, the best first.
        estimate_K: (K,) float64 metric of each.
        p_value_KK: (K, K) paired bootstrap p-values, Holm-adjusted over all pairs.
        groups: Maximal runs of models no two of which are told apart; they may overlap.
        level: Chance of any false claim.
        n_groups: Patients that this rests on; under 20 the level is not kept.
    """

    model_K: tuple[str, ...]
    estimate_K: NDArray[np.float64]
    p_value_KK: NDArray[np.float64]
    groups: tuple[tuple[str, ...], ...]
    level: float
    n_groups: int

    def in_words(self) -> str:
        """Groups on one line: ``A = B; B = C; D`` (no two of a group are told apart)."""
        line = "; ".join(" = ".join(group) for group in self.groups)
        is_unreliable = self.n_groups < FEWEST_RELIABLE_GROUPS
        return f"{line} ({self.n_groups} patients, unreliable)" if is_unreliable else line


def models_within_noise(
    metric: Metric,
    columns_by_model: Mapping[str, Sequence[Rows]],
    group_N: Rows,
    *,
    n_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.05,
) -> NoiseGroups:
    """Compare every pair of models by the paired cluster bootstrap and group them.

    Args:
        metric: What is scored.
        columns_by_model: Of the metric, by name of the model; the first column is the same.
        group_N: (N,) group (patient) of each row.
        n_resamples: Of each pair's bootstrap; K models need well over K (K - 1) / level of them,
            or Holm's adjustment leaves nothing to be told apart.
        seed: Of the resamples, the same for all pairs.
        level: Chance of any false claim, 0 to 1.

    Raises:
        ValueError: If there are fewer than two models, too few resamples to tell any pair apart,
            or as ``paired_bootstrap``.
    """
    names = list(columns_by_model)
    n_pairs = len(names) * (len(names) - 1) // 2
    if n_pairs < 1 or 2 * n_pairs / (n_resamples + 1) > level:
        msg = (
            f"models_within_noise: needs two models or more and {2 * max(n_pairs, 1) / level:.0f} "
            f"resamples for {n_pairs} pairs at level {level}; got {len(names)} models, "
            f"{n_resamples} resamples. Draw more resamples."
        )
        raise ValueError(msg)
    estimate = {name: metric(*columns) for name, columns in columns_by_model.items()}
    names.sort(key=lambda name: -estimate[name] if metric.is_better_larger else estimate[name])
    p_value_KK = np.ones((len(names), len(names)))
    for i, j in combinations(range(len(names)), 2):
        two = (columns_by_model[names[i]], columns_by_model[names[j]])
        found = paired_bootstrap(metric, *two, group_N, n_resamples=n_resamples, seed=seed)
        assert found.p_value is not None
        p_value_KK[i, j] = found.p_value
    p_value_KK = adjusted_pairs(p_value_KK)
    return NoiseGroups(
        model_K=tuple(names),
        estimate_K=np.array([estimate[name] for name in names]),
        p_value_KK=p_value_KK,
        groups=runs_not_apart(names, p_value_KK <= level),
        level=level,
        n_groups=found.n_groups,
    )
