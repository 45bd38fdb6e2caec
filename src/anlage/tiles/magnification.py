"""The resolutions that tiles are drawn at: a mixture of a few, or a continuous range.

Either is laid out on an axis from 0 to 1 on which it is uniform. What one slide can give is one
interval of that axis: from its own resolution to that at which a tile is as large as the slide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
SAME = 1e-12  # relative: two resolutions that differ by less are one


@dataclass(frozen=True, slots=True)
class ContinuousMpp:
    """Resolutions between two bounds.

    Attributes:
        low: Finest, micrometres per pixel, > 0.
        high: Coarsest, micrometres per pixel, > ``low``.
        law: ``log``: every doubling is as likely; ``linear``: every micrometre per pixel is.

    Source: Moellers et al. 2026 draw it continuously so that resolutions in between do not suffer.
    """

    low: float
    high: float
    law: Literal["log", "linear"] = "log"

    def __post_init__(self) -> None:
        if not (0 < self.low < self.high < np.inf and self.law in {"log", "linear"}):
            msg = (
                "ContinuousMpp: needs 0 < low < high and a law of 'log' or 'linear'; got "
                f"{self.low}, {self.high} and {self.law!r}. Give bounds in micrometres per pixel."
            )
            raise ValueError(msg)

    @property
    def ends(self) -> Floats:
        """Where on the axis its parts end: it is one."""
        return np.ones(1)

    def span(self, finest_N: Floats, coarsest_N: Floats) -> tuple[Floats, Floats]:
        """Where on the axis slides begin and end that give ``finest_N`` to ``coarsest_N``."""
        return self.position(finest_N), self.position(coarsest_N)

    def position(self, mpp_N: Floats) -> Floats:
        """Place on the axis of resolutions; those out of bounds lie at its ends."""
        clipped = np.clip(mpp_N, self.low, self.high)
        if self.law == "linear":
            return np.asarray((clipped - self.low) / (self.high - self.low))
        return np.asarray(np.log(clipped / self.low) / np.log(self.high / self.low))

    def mpp_at(self, position_N: Floats) -> Floats:
        """Resolution at places on the axis, micrometres per pixel."""
        if self.law == "linear":
            return self.low + position_N * (self.high - self.low)
        return np.asarray(self.low * (self.high / self.low) ** position_N)


class DiscreteMpp:
    """A mixture of a few resolutions.

    Attributes:
        mpps: The resolutions, micrometres per pixel, finest first.
        ends: Where on the axis each ends, so that its share is the length before; the last is 1.
    """

    def __init__(self, shares: Mapping[float, float]) -> None:
        weights = np.array(list(shares.values()), dtype=np.float64)
        if not (
            np.isfinite(weights).all()
            and (weights >= 0).all()
            and weights.sum() > 0
            and 0 < min(shares) <= max(shares) < np.inf
        ):
            msg = (
                "magnifications: needs an mpp > 0 with a share >= 0, not all 0; got "
                f"{dict(shares)}. Give micrometres per pixel and their shares, such as {{0.5: 1}}."
            )
            raise ValueError(msg)
        used = sorted((mpp, share) for mpp, share in shares.items() if share > 0)
        self.mpps: Floats = np.array([mpp for mpp, _ in used])
        total = np.cumsum([share for _, share in used])
        self.ends: Floats = total / total[-1]

    def span(self, finest_N: Floats, coarsest_N: Floats) -> tuple[Floats, Floats]:
        """Where on the axis slides begin and end that give ``finest_N`` to ``coarsest_N``."""
        starts = np.concatenate(([0.0], self.ends))
        first_N = np.searchsorted(self.mpps, finest_N * (1 - SAME), side="left")
        last_N = np.searchsorted(self.mpps, coarsest_N * (1 + SAME), side="right")
        return starts[first_N], starts[last_N]

    def position(self, mpp_N: Floats) -> Floats:
        """Place on the axis of some of ``mpps``: the middle of each one's share."""
        index_N = np.searchsorted(self.mpps, mpp_N)
        starts = np.concatenate(([0.0], self.ends))
        return np.asarray((starts[index_N] + starts[index_N + 1]) / 2)

    def mpp_at(self, position_N: Floats) -> Floats:
        """Resolution at places on the axis, micrometres per pixel."""
        return self.mpps[np.searchsorted(self.ends, position_N, side="right")]


Magnifications = ContinuousMpp | DiscreteMpp
