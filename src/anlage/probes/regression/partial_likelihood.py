"""Cox's partial likelihood as a function of log hazards, with Breslow's or Efron's ties."""

# Shape suffixes: N rows (patients), U different times, E events.

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ties = Literal["efron", "breslow"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Slope:
    """The negative log partial likelihood at one point, and what its curvature needs.

    Attributes:
        value: Negative log partial likelihood.
        gradient_N: (N,) its gradient in the log hazards.
        weight_N: (N,) exp of the log hazards, less their maximum.
        expected_N: (N,) cumulative hazard of each row: the events expected of it.
        inverse_E: (E,) 1 / sum of weights at risk, of each event.
    """

    value: float
    gradient_N: Tensor
    weight_N: Tensor
    expected_N: Tensor
    inverse_E: Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PartialLikelihood:
    """Who was at risk at each event. All in float64; every operation is linear in N.

    Attributes:
        place_N: (N,) index of each row's time among the different times, rising.
        event_N: (N,) 1.0 where the event was seen, else 0.0.
        event_row_E: (E,) rows with an event.
        share_E: (E,) part of the tied events' weights that this event does without: l / d for the
            l-th of d (Efron), 0 for Breslow.
        n_times: U.
    """

    place_N: Tensor
    event_N: Tensor
    event_row_E: Tensor
    share_E: Tensor
    n_times: int

    @staticmethod
    def of(
        time_N: NDArray[np.float64],
        event_N: NDArray[np.bool_],
        *,
        ties: Ties,
        device: torch.device | str,
    ) -> PartialLikelihood:
        """Of checked times and events, one event or more."""
        _, place_N = np.unique(time_N, return_inverse=True)
        row_E = np.flatnonzero(event_N)
        row_E = row_E[np.argsort(place_N[row_E], kind="stable")]
        first_E = np.searchsorted(place_N[row_E], place_N[row_E])
        number_E = np.arange(len(row_E)) - first_E
        tied_E = np.bincount(place_N[row_E])[place_N[row_E]]
        share_E = number_E / tied_E if ties == "efron" else np.zeros(len(row_E))
        return PartialLikelihood(
            place_N=torch.from_numpy(place_N.astype(np.int64)).to(device),
            event_N=torch.from_numpy(event_N.astype(np.float64)).to(device),
            event_row_E=torch.from_numpy(row_E).to(device),
            share_E=torch.from_numpy(share_E).to(device),
            n_times=int(place_N.max()) + 1,
        )

    def slope(self, log_hazard_N: Tensor) -> Slope:
        """Value and gradient at these log hazards; infinite or NaN where they overflow."""
        largest = log_hazard_N.max()
        weight_N = (log_hazard_N - largest).exp()
        at_risk_E = self._at_risk(weight_N)
        inverse_E = 1 / at_risk_E
        value = at_risk_E.log().sum() - (log_hazard_N - largest)[self.event_row_E].sum()
        expected_N = weight_N * self._since_start(inverse_E)
        return Slope(
            value=float(value),
            gradient_N=expected_N - self.event_N,
            weight_N=weight_N,
            expected_N=expected_N,
            inverse_E=inverse_E,
        )

    def curvature(self, slope: Slope, direction_NK: Tensor) -> Tensor:
        """(N, K) second derivative of the value at a slope, times directions of log hazards."""
        weight_N1, inverse_E1 = slope.weight_N[:, None], slope.inverse_E[:, None]
        mean_EK = self._at_risk(weight_N1 * direction_NK) * inverse_E1
        drawn_NK = weight_N1 * self._since_start(mean_EK * inverse_E1)
        return slope.expected_N[:, None] * direction_NK - drawn_NK

    def baseline_steps(self, log_hazard_N: Tensor) -> Tensor:
        """(U,) Breslow's steps of the cumulative hazard of a row of log hazard 0."""
        largest = log_hazard_N.max()
        at_risk_U = self._risk_sums((log_hazard_N - largest).exp())
        return self._by_time(self.event_N, self.place_N) / at_risk_U / largest.exp()

    def _by_time(self, value: Tensor, place: Tensor) -> Tensor:
        zero_U = value.new_zeros((self.n_times, *value.shape[1:]))
        return zero_U.index_add_(0, place, value)

    def _risk_sums(self, value_N: Tensor) -> Tensor:
        return self._by_time(value_N, self.place_N).flip(0).cumsum(0).flip(0)

    def _at_risk(self, value_N: Tensor) -> Tensor:
        """(E, ...) sum over the rows at risk at each event, less its share of the tied ones."""
        place_E = self.place_N[self.event_row_E]
        tied_U = self._by_time(value_N[self.event_row_E], place_E)
        share_E = _along(self.share_E, value_N)
        return self._risk_sums(value_N)[place_E] - share_E * tied_U[place_E]

    def _since_start(self, value_E: Tensor) -> Tensor:
        """(N, ...) sum over the events at which each row was at risk: ``_at_risk`` transposed."""
        place_E = self.place_N[self.event_row_E]
        until_U = self._by_time(value_E, place_E).cumsum(0)
        tied_U = self._by_time(_along(self.share_E, value_E) * value_E, place_E)
        return until_U[self.place_N] - _along(self.event_N, value_E) * tied_U[self.place_N]


def _along(number: Tensor, like: Tensor) -> Tensor:
    return number.reshape(-1, *[1] * (like.ndim - 1))
