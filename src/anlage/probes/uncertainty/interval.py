"""A number with its intervals over groups (patients), and how it reads in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FEWEST_RELIABLE_GROUPS = 20

Method = Literal["bca", "percentile"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A number with its bootstrap interval and, beside it, a t-interval; both over groups.

    Attributes:
        estimate: The number on all groups.
        low: Lower end of the bootstrap interval.
        high: Upper end of it.
        t_low: Lower end of the t-interval (jackknife over groups, G - 1 degrees of freedom).
        t_high: Upper end of it.
        n_groups: Groups (patients) the intervals rest on.
        n_resamples: Bootstrap resamples drawn.
        n_short_of_a_class: Resamples in which a class had no row; a mean over classes was then
            taken over those present.
        is_unreliable: Fewer than 20 groups: the bootstrap interval is too narrow, look at the
            t-interval, and claim little.
        method: How the ends of the bootstrap interval were found. ``percentile`` also where BCa
            was asked for and has no value: all resamples equal, or all on one side of the estimate.
        n_undefined: Resamples on which the metric had no value (AUROC without a positive); they
            were left out.
        n_always_drawn: Groups that were alone in their stratum, hence in every resample exactly
            once: what they would vary is not in the bootstrap interval, which is too narrow.
        confidence: Of both intervals, 0 to 1.
        p_value: Two-sided, that the number is 0; of differences only.
    """

    estimate: float
    low: float
    high: float
    t_low: float
    t_high: float
    n_groups: int
    n_resamples: int
    n_short_of_a_class: int
    is_unreliable: bool
    method: Method = "percentile"
    n_undefined: int = 0
    n_always_drawn: int = 0
    confidence: float = 0.95
    p_value: float | None = None

    def in_words(
        self, *, sign: Literal["", "+"] = "", n_digits: int = 3, group: str = "patient"
    ) -> str:
        """The number, its interval and what it rests on, on one line.

        ``0.912 (95 %: 0.880 to 0.941; 120 patients)``, and with fewer than 20 groups
        ``0.912 (95 %: bootstrap 0.880 to 0.941, t 0.861 to 0.963; 9 patients, unreliable)``.

        Args:
            sign: ``+`` prints the sign of positive numbers too, for differences.
            n_digits: After the point.
            group: What one group is called, in the singular.
        """
        estimate, low, high, t_low, t_high = (
            format(value + 0.0, f"{sign}.{n_digits}f")  # + 0.0: no minus before a zero
            for value in (self.estimate, self.low, self.high, self.t_low, self.t_high)
        )
        ends = f"{low} to {high}"
        if self.is_unreliable:
            ends = f"bootstrap {low} to {high}, t {t_low} to {t_high}"
        return f"{estimate} ({100 * self.confidence:g} %: {ends}; {self._basis(group)})"

    def _basis(self, group: str) -> str:
        def counted(n: int, noun: str) -> str:
            return f"{n} {noun}" if n == 1 else f"{n} {noun}s"

        parts = [counted(self.n_groups, group)]
        if self.is_unreliable:
            parts.append("unreliable")
        if self.n_always_drawn:
            parts.append(f"{self.n_always_drawn} alone in a class, whose spread is not in it")
        if self.n_short_of_a_class:
            parts.append(f"{counted(self.n_short_of_a_class, 'resample')} short of a class")
        if self.n_undefined:
            parts.append(f"{counted(self.n_undefined, 'resample')} without a value left out")
        return ", ".join(parts)
