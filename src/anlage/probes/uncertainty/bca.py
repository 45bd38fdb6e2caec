"""Ends of bootstrap intervals: percentile, and BCa (bias-corrected and accelerated)."""

# Shape suffixes: R resamples, G groups.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtr, stdtrit

TIE = 1e-12


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BootstrapDistribution:
    """What the ends of an interval are read from.

    Attributes:
        value_R: (R,) statistic of each resample, all finite.
        estimate: The statistic on the groups as they are.
        leave_out_G: (G,) statistic without each group, or each block of many; NaN where it has no
            value.
        stratum_G: (G,) stratum of each group; one stratum if they were drawn without strata.
    """

    value_R: NDArray[np.float64]
    estimate: float
    leave_out_G: NDArray[np.float64]
    stratum_G: NDArray[np.int64]

    def share_below(self, value: float) -> float:
        """Share of the resamples below a value, those equal to it counted half.

        Equal means within 1e-12 of the larger of 1 and the value: sums in another order differ.
        """
        below, up_to = self._shares(value)
        return (below + up_to) / 2

    def is_constant(self) -> bool:
        """Whether all resamples gave the estimate, so that the interval is a point."""
        tie = TIE * max(1.0, abs(self.estimate))
        return bool(np.ptp(self.value_R) <= tie)

    def acceleration(self) -> float:
        """How fast the standard error changes with the truth: from the jackknife over groups.

            a = sum_g d_g^3 / (6 (sum_g d_g^2)^(3/2)),   d_g = mean of the stratum - leave_out_g

        Groups without which the statistic has no value are left out; 0 where no group moves it.
        """
        moved_G = _within_strata(self.leave_out_G, self.stratum_G)
        square = float((moved_G**2).sum())
        if square <= TIE**2:
            return 0.0
        return float((moved_G**3).sum() / (6 * square**1.5))

    def widened(self, confidence: float) -> float:
        """The confidence whose normal quantile is the t quantile of the one asked for.

        Quantiles of resamples are too close together by what a normal interval is narrower than a
        t-interval and, where groups were drawn without strata, by sqrt((G - 1) / G): 0.954 instead
        of 0.95 for 100 groups, 0.968 for 20.

        Source: Hesterberg 2015, What Teachers Should Know About the Bootstrap, Am Stat 69:371
        (expanded percentile interval); Satterthwaite 1946, Biometrics Bull 2:110.
        """
        freedom, factor = self._freedom()
        wide = 2 * ndtr(factor * stdtrit(freedom, (1 + confidence) / 2)) - 1
        return float(min(wide, 1 - TIE))

    def percentile_ends(self, confidence: float) -> tuple[float, float]:
        """The quantiles of the resamples that leave out equal tails."""
        return self._quantiles((1 - confidence) / 2, (1 + confidence) / 2)

    def bca_ends(self, confidence: float) -> tuple[float, float] | None:
        """The quantiles that correct for median bias and for a standard error that changes.

            alpha' = Phi( z0 + (z0 + z_alpha) / (1 - a (z0 + z_alpha)) ),   z0 = Phi^-1(share below)

        Returns:
            The ends; None where BCa has no value: all resamples are equal, all lie on one side of
            the estimate (z0 infinite), or the correction passes its pole.

        Source: Efron 1987, JASA 82:171, equations 2.3 and 6.6; DiCiccio and Efron 1996, Statistical
        Science 11:189. Ties counted half (there, ``<``): a score of few patients has many.
        """
        bias = float(ndtri(self.share_below(self.estimate)))
        if self.is_constant() or not np.isfinite(bias):
            return None
        acceleration = self.acceleration()
        tail = bias + ndtri([(1 - confidence) / 2, (1 + confidence) / 2])
        if (1 - acceleration * tail <= 0).any():
            return None
        low, high = ndtr(bias + tail / (1 - acceleration * tail))
        return self._quantiles(float(low), float(high))

    def p_value(self, *, is_bca: bool) -> float:
        """Two-sided p of a true value of 0.

        The smallest 1 - confidence whose widened interval leaves out 0, percentile or BCa; a
        resample that is 0 holds it back from both sides. Where no resample reaches 0, as if one in
        R + 1 did: R resamples cannot show less.
        """
        if self.is_constant():
            return float(abs(self.estimate) <= TIE) or 2 / (len(self.value_R) + 1)
        below, up_to = self._shares(0.0)
        freedom, factor = self._freedom()
        low_end = stdtr(freedom, self._level(up_to, is_bca=is_bca) / factor)
        high_end = stdtr(freedom, -self._level(below, is_bca=is_bca) / factor)
        return float(min(1.0, 2 * max(min(low_end, high_end), 1 / (len(self.value_R) + 1))))

    def _level(self, share: float, *, is_bca: bool) -> float:
        """The level, as a normal quantile, whose end is this quantile of the resamples."""
        edge = 1 / (len(self.value_R) + 1)
        z = float(ndtri(min(max(share, edge), 1 - edge)))
        bias = float(ndtri(self.share_below(self.estimate))) if is_bca else 0.0
        if not is_bca or not np.isfinite(bias):
            return z
        shifted = z - bias
        scale = 1 + self.acceleration() * shifted
        return shifted / scale - bias if scale > 0 else float(np.copysign(np.inf, shifted))

    def _freedom(self) -> tuple[float, float]:
        """Degrees of freedom of the groups, and what resampling without strata narrows by.

        Satterthwaite's, from the jackknife: G - 1 of one stratum; of several, few if a stratum of
        few groups moves the statistic most. At least 1.
        """
        n_groups = len(self.stratum_G)
        moved_G = _within_strata(self.leave_out_G, self.stratum_G)
        known_G = self.stratum_G[~np.isnan(self.leave_out_G)]
        _, code_G, size_S = np.unique(known_G, return_inverse=True, return_counts=True)
        square_S = np.bincount(code_G, weights=moved_G**2)
        spare_S = np.maximum(size_S - 1, 1)
        part_S = square_S * (size_S - 1) / size_S
        if part_S.sum() <= TIE**2:
            freedom = float(max(n_groups - len(np.unique(self.stratum_G)), 1))
        else:
            freedom = max(float(part_S.sum() ** 2 / (part_S**2 / spare_S).sum()), 1.0)
        return freedom, np.sqrt(n_groups / (n_groups - 1)) ** (not np.ptp(self.stratum_G))

    def _shares(self, value: float) -> tuple[float, float]:
        """Shares of the resamples below a value, and up to it; equal as in ``share_below``."""
        tie = TIE * max(1.0, abs(value))
        n_below = np.count_nonzero(self.value_R < value - tie)
        n_up_to = np.count_nonzero(self.value_R <= value + tie)
        return n_below / len(self.value_R), n_up_to / len(self.value_R)

    def _quantiles(self, low: float, high: float) -> tuple[float, float]:
        ends = np.quantile(self.value_R, [low, high])
        return float(ends[0]), float(ends[1])


def _within_strata(
    value_G: NDArray[np.float64], stratum_G: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Mean of its stratum minus each value, of the values that are not NaN."""
    known = ~np.isnan(value_G)
    _, code = np.unique(stratum_G[known], return_inverse=True)
    mean_S = np.bincount(code, weights=value_G[known]) / np.bincount(code)
    moved: NDArray[np.float64] = mean_S[code] - value_G[known]
    return moved
