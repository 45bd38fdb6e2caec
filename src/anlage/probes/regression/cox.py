"""Cox regression: survival from embeddings, by a ridge-penalised partial likelihood."""

# Shape suffixes: M train rows (patients), N test rows, D embedding width, U different times,
# T times asked for, A strengths, K components.

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from anlage.probes.checks import Rows, all_rows_equal, embedding_tensor, labels_of, same_width
from anlage.probes.metrics.survival_times import survival_times
from anlage.probes.regression.newton import penalised_fit
from anlage.probes.regression.partial_likelihood import PartialLikelihood, Ties
from anlage.probes.regression.principal import (
    Coordinates,
    checked_components,
    coordinates,
    main_directions,
)
from anlage.probes.splits.grouped import grouped_folds

LOGGER = logging.getLogger(__name__)
L2S = tuple(float(l2) for l2 in np.logspace(-1, 6, 15))
SEPARABLE = 30.0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CoxHead:
    """A trained proportional hazards model.

    Attributes:
        weight_D: (D,) float64 on embeddings less ``mean_D``; scaling and PCA are in it.
        mean_D: (D,) float64 mean of the train rows, whose log hazard is 0.
        time_U: (U,) different times of the train side, rising.
        hazard_U: (U,) cumulative hazard of the mean row at each (Breslow's estimate).
        l2: Strength of the penalty.
        n_components: Principal components used.
        has_converged: False when the solver stopped at its last step.
        l2_A: (A,) strengths tried; empty where it was given.
        gain_A: (A,) cross-validated log partial likelihood less that of no features at all: at or
            below 0 the embeddings tell nothing.
    """

    weight_D: Tensor
    mean_D: Tensor
    time_U: NDArray[np.float64]
    hazard_U: NDArray[np.float64]
    l2: float
    n_components: int
    has_converged: bool
    l2_A: NDArray[np.float64]
    gain_A: NDArray[np.float64]

    def risk(self, test_ND: Rows) -> NDArray[np.float64]:
        """(N,) log hazard of each row less that of the mean train row.

        Raises:
            ValueError: If the array is unusable or of another width.
        """
        weight_D = self.weight_D
        test = embedding_tensor(
            "CoxHead", "test", test_ND, device=weight_D.device, dtype=torch.float64
        )
        same_width("CoxHead", weight_D[None], test)
        risk: NDArray[np.float64] = ((test - self.mean_D) @ weight_D).cpu().numpy()
        return risk

    def cumulative_hazard(self, test_ND: Rows, times_T: ArrayLike) -> NDArray[np.float64]:
        """(N, T) cumulative hazard of each row at each time; flat after the last train event."""
        place_T = np.searchsorted(self.time_U, np.asarray(times_T, dtype=float), side="right")
        baseline_T = np.concatenate([[0.0], self.hazard_U])[place_T]
        with np.errstate(over="ignore", invalid="ignore"):
            hazard_NT = np.exp(self.risk(test_ND))[:, None] * baseline_T
        hazard: NDArray[np.float64] = np.where(baseline_T > 0, hazard_NT, 0.0)
        return hazard

    def survival(self, test_ND: Rows, times_T: ArrayLike) -> NDArray[np.float64]:
        """(N, T) probability of no event up to each time; flat after the last train event."""
        survival: NDArray[np.float64] = np.exp(-self.cumulative_hazard(test_ND, times_T))
        return survival


def cox_probe(
    train_MD: Rows,
    time_M: Rows,
    event_M: Rows,
    *,
    l2: float,
    ties: Ties = "efron",
    n_components: int | None = None,
    standardise: bool = True,
    device: torch.device | str | None = None,
) -> CoxHead:
    """Log hazards that are linear in the embeddings, with a given penalty.

        minimise - log partial likelihood + l2 / 2 |w|^2

    with sums, not means, over events, so l2 is scikit-survival's ``alpha``. All in float64 in the
    space that the rows span, by Newton's method; a width of thousands costs what the patients do.

    Args:
        train_MD: (M, D) embeddings of the train side, one row a patient.
        time_M: (M,) time of the event or of the end of follow-up, >= 0, any one unit.
        event_M: (M,) bool or 0/1: 1 where the event was seen.
        l2: Strength of the penalty, >= 0, on weights of standardised features. With 0 the
            likelihood must have a maximum: fewer features than patients, and no separation.
        ties: How events at one time share their risk set.
        n_components: Principal components to keep, 1 to min(M, D); None for all (no PCA).
        standardise: Divide features by their deviation first; a constant one is only centred.
        device: Where to compute; by default where a tensor is, and the CPU for an array.

    Raises:
        ValueError: If an array is unusable, a time is negative or NaN, all are censored, no feature
            varies, l2 is negative, or l2 is 0 and the likelihood has no maximum.

    Source: Cox 1972; Efron 1977; Breslow 1974; Verweij & van Houwelingen 1994 for the penalty.
    """
    _refuse_strengths("cox_probe", [l2], least=0.0)
    cohort = _cohort(
        "cox_probe",
        train_MD,
        (time_M, event_M),
        standardise=standardise,
        n_components=n_components,
        device=device,
    )
    if l2 == 0 and cohort.row_MK.shape[1] >= len(cohort.time_M) - 1:
        raise ValueError(_no_maximum(len(cohort.time_M)))
    return _fitted(cohort, l2, ties)


def cox_probe_tuned(
    train_MD: Rows,
    time_M: Rows,
    event_M: Rows,
    group_M: Rows | None = None,
    *,
    l2s: Sequence[float] = L2S,
    n_folds: int = 5,
    seed: int = 0,
    ties: Ties = "efron",
    n_components: int | None = None,
    standardise: bool = True,
    device: torch.device | str | None = None,
) -> CoxHead:
    """``cox_probe`` with the penalty of largest cross-validated partial likelihood.

        sum over folds f of  l(w without f) - l without f(w without f)

    where l is the log partial likelihood: what the left-out patients add to it. Folds are whole
    patients of the train side, with events spread over them. Scaling and PCA are of the whole train
    side; they see no time and no event.

    Args:
        train_MD: (M, D) embeddings of the train side.
        time_M: (M,) times, >= 0.
        event_M: (M,) bool or 0/1.
        group_M: (M,) patient of each row; by default each row is a patient.
        l2s: Strengths to try, > 0, rising.
        n_folds: 2 to the number of patients.
        seed: Of the dealing of patients into folds.
        ties: How events at one time share their risk set.
        n_components: Principal components to keep; None for all.
        standardise: Divide features by their deviation first.
        device: Where to compute; by default where a tensor is, and the CPU for an array.

    Raises:
        ValueError: As ``cox_probe``, or if there are fewer patients or patients with an event than
            folds, or l2s are not positive and rising.

    Source: Verweij & van Houwelingen 1993, Statistics in Medicine 12, equation 2; 1994 for ridge.
    """
    who = "cox_probe_tuned"
    _refuse_strengths(who, l2s, least=float(np.nextafter(0, 1)))
    cohort = _cohort(
        who,
        train_MD,
        (time_M, event_M),
        standardise=standardise,
        n_components=n_components,
        device=device,
    )
    n_rows = len(cohort.time_M)
    group = (
        np.arange(n_rows) if group_M is None else labels_of(who, "groups", group_M, n_rows=n_rows)
    )
    n_with_event = len(np.unique(group[cohort.event_M]))
    if n_with_event < n_folds:
        msg = (
            f"{who}: needs a patient with an event for each of {n_folds} folds; got "
            f"{n_with_event}. Ask for fewer folds, or give l2 to cox_probe."
        )
        raise ValueError(msg)
    folds = grouped_folds(
        cohort.event_M.astype(int), group, n_folds=n_folds, seed=seed, fewest_groups=1
    )
    gain_A = np.zeros(len(l2s))
    for fold in folds:
        gain_A += _left_out_gain(cohort, fold.train, l2s, ties)
    head = _fitted(cohort, float(l2s[int(gain_A.argmax())]), ties)
    return replace(head, l2_A=np.array(l2s, dtype=np.float64), gain_A=gain_A)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Cohort:
    """Checked train rows as principal components, with their times and events."""

    where: Coordinates
    direction_PK: Tensor
    row_MK: Tensor
    time_M: NDArray[np.float64]
    event_M: NDArray[np.bool_]

    def likelihood(self, rows: NDArray[np.int64], ties: Ties) -> PartialLikelihood:
        return PartialLikelihood.of(
            self.time_M[rows], self.event_M[rows], ties=ties, device=self.row_MK.device
        )


def _cohort(
    who: str,
    train_MD: Rows,
    follow_up: tuple[Rows, Rows],
    *,
    standardise: bool,
    n_components: int | None,
    device: torch.device | str | None,
) -> _Cohort:
    train = embedding_tensor(who, "train", train_MD, device=device, dtype=torch.float64)
    event, time = survival_times(who, follow_up[1], follow_up[0], n_rows=len(train))
    checked_components(who, n_components, (train.shape[0], train.shape[1]))
    if all_rows_equal(train):
        msg = (
            f"{who}: train needs a feature that varies; got {len(train)} equal rows of width "
            f"{train.shape[1]}. The encoder has collapsed or one slide was embedded many times."
        )
        raise ValueError(msg)
    where = coordinates(train, standardise=standardise)
    _, direction_PK = main_directions(where.row_MP.T @ where.row_MP, n_components)
    return _Cohort(
        where=where,
        direction_PK=direction_PK,
        row_MK=where.row_MP @ direction_PK,
        time_M=time,
        event_M=event,
    )


def _fitted(cohort: _Cohort, l2: float, ties: Ties) -> CoxHead:
    likelihood = cohort.likelihood(np.arange(len(cohort.time_M)), ties)
    start_K = cohort.row_MK.new_zeros(cohort.row_MK.shape[1])
    weight_K, has_converged = penalised_fit(likelihood, cohort.row_MK, l2=l2, start_K=start_K)
    log_hazard_M = cohort.row_MK @ weight_K
    spread = float(log_hazard_M.max() - log_hazard_M.min())
    if l2 == 0 and not (has_converged and spread <= SEPARABLE):
        raise ValueError(_no_maximum(len(log_hazard_M)))
    if not has_converged:
        LOGGER.warning("cox_probe: not converged with l2 %g", l2)
    weight_PT = (cohort.direction_PK @ weight_K)[:, None]
    return CoxHead(
        weight_D=cohort.where.in_features(weight_PT)[:, 0].contiguous(),
        mean_D=cohort.where.mean_D,
        time_U=np.unique(cohort.time_M),
        hazard_U=likelihood.baseline_steps(log_hazard_M).cumsum(0).cpu().numpy(),
        l2=float(l2),
        n_components=len(weight_K),
        has_converged=has_converged,
        l2_A=np.empty(0),
        gain_A=np.empty(0),
    )


def _left_out_gain(
    cohort: _Cohort, kept: NDArray[np.int64], l2s: Sequence[float], ties: Ties
) -> NDArray[np.float64]:
    """(A,) what the rows left out add to the log partial likelihood, less that of no features."""
    whole = cohort.likelihood(np.arange(len(cohort.time_M)), ties)
    part = cohort.likelihood(kept, ties)
    row_LK = cohort.row_MK[torch.from_numpy(kept).to(cohort.row_MK.device)]

    def added(weight_K: Tensor) -> float:
        return part.slope(row_LK @ weight_K).value - whole.slope(cohort.row_MK @ weight_K).value

    weight_K = row_LK.new_zeros(row_LK.shape[1])
    nothing = added(weight_K)
    gain_A = np.zeros(len(l2s))
    for place in reversed(range(len(l2s))):  # from the strongest, each starts where the last ended
        weight_K, has_converged = penalised_fit(part, row_LK, l2=l2s[place], start_K=weight_K)
        gain_A[place] = added(weight_K) - nothing if has_converged else -np.inf
    return gain_A


def _refuse_strengths(who: str, l2s: Sequence[float], *, least: float) -> None:
    given = np.array(l2s, dtype=np.float64)
    is_rising = bool((np.diff(given) > 0).all())
    if not (given.size and np.isfinite(given).all() and given.min() >= least and is_rising):
        msg = (
            f"{who}: l2 needs to be finite, {'>= 0' if least == 0 else '> 0, and rising'}; got "
            f"{np.array2string(given, threshold=6)}. Try 1 to 100,000 on a logarithmic scale."
        )
        raise ValueError(msg)


def _no_maximum(n_rows: int) -> str:
    return (
        f"cox_probe: l2 = 0 needs a likelihood with a maximum; got {n_rows} patients whose events "
        "the features can put in perfect order (too many features, or separable). Give l2 > 0."
    )
