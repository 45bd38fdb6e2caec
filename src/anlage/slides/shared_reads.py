"""Several rectangles by one read, where that is less work than one read for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from anlage.errors import SlideError
from anlage.slides.rectangle import Outcome, Rectangle, around

MAX_TOGETHER_PX = 2**24  # 48 MiB of pixels


def read_together(
    read: Callable[[Rectangle], NDArray[np.uint8]], places: Sequence[Rectangle], *, is_exact: bool
) -> Iterator[tuple[int, Outcome]]:
    """Number and pixels of each rectangle, or the error that it alone met.

    One read serves all where the rectangle around them has no more pixels than they have
    together. If it fails, each is read by itself, to find out which of them are concerned.

    Args:
        read: Gives the pixels of a rectangle.
        places: What to read, each wholly inside the picture.
        is_exact: A part of what ``read`` gives is what it gives for that part.
    """
    whole = _read_around(read, places) if is_exact and len(places) > 1 else None
    for number, place in enumerate(places):
        if whole is not None:
            yield number, whole[0].cut(whole[1], place).copy()
            continue
        try:
            outcome: Outcome = read(place)
        except SlideError as error:
            outcome = error
        yield number, outcome


def _read_around(
    read: Callable[[Rectangle], NDArray[np.uint8]], places: Sequence[Rectangle]
) -> tuple[Rectangle, NDArray[np.uint8]] | None:
    whole = around(places)
    if whole.n_px > min(sum(place.n_px for place in places), MAX_TOGETHER_PX):
        return None
    try:
        return whole, read(whole)
    except SlideError:
        return None  # the places are read one by one, and those concerned say so
