"""Rectangles of a level that may reach over its edge, where the slide is white."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from anlage.errors import SlideError
from anlage.geometry import Size

WHITE = 255
Outcome = NDArray[np.uint8] | SlideError  # the pixels of one rectangle, or why there are none


class Rectangle(NamedTuple):
    """Part of a picture, in its pixels; ``left`` and ``top`` may be negative."""

    left: int
    top: int
    width: int
    height: int

    @property
    def right(self) -> int:
        """The first column beyond it."""
        return self.left + self.width

    @property
    def bottom(self) -> int:
        """The first row beyond it."""
        return self.top + self.height

    @property
    def n_px(self) -> int:
        """Its area in pixels."""
        return self.width * self.height

    def inside(self, size: Size) -> Rectangle | None:
        """The part of it that lies in a picture of this size; None if there is none."""
        left, top = max(self.left, 0), max(self.top, 0)
        width = min(self.left + self.width, size.width) - left
        height = min(self.top + self.height, size.height) - top
        return Rectangle(left, top, width, height) if width > 0 and height > 0 else None

    def on_white(
        self, pixels: NDArray[np.uint8] | None, part: Rectangle | None
    ) -> NDArray[np.uint8]:
        """The whole rectangle, of which the pixels of a part are known: the rest is white.

        Args:
            pixels: (part.height, part.width, 3) uint8; None without a part.
            part: Where they lie, in the same picture.

        Returns:
            (height, width, 3) uint8: ``pixels`` itself where they are all of it.
        """
        if part == self and pixels is not None:
            return pixels
        region = np.full((self.height, self.width, 3), WHITE, np.uint8)
        if pixels is not None and part is not None:
            self.cut(region, part)[...] = pixels
        return region

    def cut(self, pixels: NDArray[np.uint8], part: Rectangle) -> NDArray[np.uint8]:
        """The view of a part in the pixels of this rectangle, which holds it."""
        left, top = part.left - self.left, part.top - self.top
        return pixels[top : top + part.height, left : left + part.width]


def around(rectangles: Sequence[Rectangle]) -> Rectangle:
    """The smallest rectangle that holds all of them."""
    left, top = min(r.left for r in rectangles), min(r.top for r in rectangles)
    width = max(r.right for r in rectangles) - left
    return Rectangle(left, top, width, max(r.bottom for r in rectangles) - top)


def spans(extent: int, step: int) -> Iterator[tuple[int, int]]:
    """First and one after the last of every ``step`` pixels of ``extent``, in order."""
    for start in range(0, extent, step):
        yield start, min(start + step, extent)
