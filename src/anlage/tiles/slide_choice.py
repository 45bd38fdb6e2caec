"""Which slide at which resolution, for numbers in [0, 1): exact shares for millions of slides.

Shape suffixes: S slides, C cells of the axis of resolutions, N draws.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from anlage.tiles.magnification import Magnifications

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
BELOW_ONE = np.nextafter(1.0, 0.0)


class SlideChoice:
    """Draws a resolution by its share, and a slide by its weight among those that can give it.

    Both come from the joint law, slide first: a slide's share is summed over the resolutions it
    can give, and the resolution then drawn among these. Systematic samples of the first number thus
    give different slides, whatever the resolutions, wherever no share is too large.

    Slides are kept in the order of the finest resolution they give, so that those fine enough for
    one resolution come first.

    Attributes:
        uncovered: (M,) resolutions of the law that no slide can give, micrometres per pixel; as
            long as there are any, nothing can be drawn.
        is_usable: (S,) bool, whether a slide is ever drawn.
    """

    def __init__(
        self, law: Magnifications, weight_S: Floats, *, span: tuple[Floats, Floats]
    ) -> None:
        """Prepare the draws.

        Args:
            law: The resolutions.
            weight_S: (S,) weights of the slides, >= 0.
            span: (S,) arrays: where on the law's axis what a slide can give begins, and ends.
        """
        self._law = law
        first_S, last_S = span
        weight_S = np.where(last_S > first_S, weight_S, 0.0)
        self.is_usable: NDArray[np.bool_] = weight_S > 0
        self._breaks = np.unique(
            np.concatenate(
                (
                    [0.0],
                    law.ends,
                    np.unique(first_S[self.is_usable]),
                    np.unique(last_S[self.is_usable]),
                )
            )
        )
        self._first = self._cells(np.where(self.is_usable, first_S, 0.0))
        self._last = self._cells(np.where(self.is_usable, last_S, 0.0))
        del first_S, last_S
        weight_C = self._weight_of_cells(weight_S)
        is_empty = weight_C <= 0
        self.uncovered = law.mpp_at((self._breaks[:-1] + self._breaks[1:])[is_empty] / 2)
        density_C = np.diff(self._breaks) / np.where(is_empty, np.inf, weight_C)
        self._mass = np.concatenate(([0.0], np.cumsum(density_C)))
        self._order = np.argsort(self._first, kind="stable").astype(np.uint32)
        weight_S = weight_S[self._order]
        self._first_in_order = self._first[self._order]
        self._weights = np.cumsum(weight_S)
        weight_S *= self._mass[self._last[self._order]] - self._mass[self._first_in_order]
        self._shares = np.cumsum(weight_S, out=weight_S)
        self._shares /= max(self._shares[-1], np.finfo(float).tiny) if len(weight_S) else 1.0

    def draw(self, slide_q_N: Floats, mpp_q_N: Floats) -> tuple[Integers, Floats]:
        """Slide rows, (N,) int64, and resolutions, (N,) micrometres per pixel.

        Args:
            slide_q_N: Number in [0, 1) that decides the slide.
            mpp_q_N: Number in [0, 1) that decides the resolution.
        """
        ascending = np.argsort(slide_q_N)  # near numbers find their slides in the same memory
        row_N = np.empty(len(slide_q_N), dtype=np.int64)
        place = np.searchsorted(self._shares, slide_q_N[ascending], side="right")
        row_N[ascending] = self._order[place]
        first_N, last_N = self._first[row_N], self._last[row_N]
        start_N = self._mass[first_N]
        target_N = start_N + mpp_q_N * (self._mass[last_N] - start_N)
        position_N = np.interp(target_N, self._mass, self._breaks)
        end_N = np.nextafter(self._breaks[last_N], 0.0)
        position_N = np.clip(position_N, self._breaks[first_N], end_N)
        return row_N, self._law.mpp_at(position_N)

    def another(self, slide_q: float, mpp: float) -> int | None:
        """The row of another slide at the same resolution; None if it cannot give that.

        Args:
            slide_q: Number in [0, 1) that decides the slide.
            mpp: A resolution that ``draw`` gave.
        """
        position = self._law.position(np.array([mpp]))[0]
        cell = int(np.searchsorted(self._breaks, position, side="right")) - 1
        cell = min(cell, len(self._breaks) - 2)
        n_fine = int(np.searchsorted(self._first_in_order, cell, side="right"))
        target = slide_q * self._weights[n_fine - 1]
        nth = int(np.searchsorted(self._weights, target, side="right"))
        row = int(self._order[min(nth, n_fine - 1)])
        return row if self._first[row] <= cell < self._last[row] else None

    def _cells(self, position_S: Floats) -> NDArray[np.unsignedinteger]:
        kind = np.min_scalar_type(len(self._breaks))
        return np.searchsorted(self._breaks, position_S).astype(kind)

    def _weight_of_cells(self, weight_S: Floats) -> Floats:
        """Summed weights of the slides that can give each cell; exactly 0 where there are none."""
        n = len(self._breaks)
        change_C, n_change_C = (
            np.bincount(self._first, weights, n) - np.bincount(self._last, weights, n)
            for weights in (weight_S, self.is_usable)
        )
        n_slides_C = np.cumsum(n_change_C)[:-1]
        return np.where(n_slides_C > 0.5, np.cumsum(change_C)[:-1], 0.0)
