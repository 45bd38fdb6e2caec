"""Pixels of tiles of a pool, read from their slides: to judge them, and to show them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from anlage.curation.pool import TilePool
from anlage.errors import AnlageError, SlideError
from anlage.progress import meter
from anlage.slides.catalogue import Catalogue
from anlage.slides.colour import Colour
from anlage.slides.levels import TileWindow
from anlage.slides.regions import read_tiles
from anlage.tiles.filters import TileFilter

Integers = NDArray[np.int64]
Pixels = NDArray[np.uint8]
TILES_AT_ONCE = 64  # of one slide, that one thread reads
Judge = Callable[[Pixels], str]


@dataclass(slots=True, eq=False)
class Judged:
    """What the filters say of a pool.

    Attributes:
        is_kept_N: (N,) bool, whether a tile passes them all.
        rejected: Tiles that each filter rejected, by its name; the first to reject counts.
        unreadable: Tiles that could not be read, by slide_id; they are not kept.
        errors: The first error of each such slide.
    """

    is_kept_N: NDArray[np.bool_]
    rejected: Counter[str] = field(default_factory=Counter)
    unreadable: Counter[str] = field(default_factory=Counter)
    errors: dict[str, str] = field(default_factory=dict)

    def note(self, row: int, slide_id: str, verdict: str | AnlageError) -> None:
        """Take down what became of a tile: the filter that rejects it, "" for none, or an error."""
        if isinstance(verdict, AnlageError):
            self.unreadable[slide_id] += 1
            self.errors.setdefault(slide_id, verdict.message)
        elif verdict:
            self.rejected[verdict] += 1
        else:
            self.is_kept_N[row] = True


def judge_tiles(
    pool: TilePool, catalogue: Catalogue, filters: Sequence[TileFilter], *, threads: int = 2
) -> Judged:
    """Read every tile of a pool and ask the filters of training whether to keep it.

    Args:
        pool: The tiles.
        catalogue: Opens their slides.
        filters: The judges, in their order; pure, safe to call from many threads.
        threads: Threads that read; each has one slide at a time.
    """
    judged = Judged(np.zeros(len(pool), dtype=np.bool_))
    judge = partial(_first_to_reject, filters=filters, mpp=pool.made.mpp)
    with (
        meter("colours", total=len(pool), unit="tiles") as progress,
        ThreadPoolExecutor(threads) as workers,
    ):
        slides = range(len(pool.slide_ids))
        for verdicts in workers.map(partial(_judged_slide, pool, catalogue, judge), slides):
            for row, verdict in verdicts.items():
                judged.note(row, pool.slide_ids[pool.slide_N[row]], verdict)
            progress.advance(len(verdicts))
    return judged


def read_pool_tiles(
    pool: TilePool, catalogue: Catalogue, rows: Integers
) -> Iterator[tuple[int, Pixels | AnlageError]]:
    """Pixels of some tiles of one slide, each (tile_px, tile_px, 3) uint8 RGB, or the error met.

    Args:
        pool: The tiles.
        catalogue: Opens the slide.
        rows: Of the pool, all of one slide.
    """
    made = pool.made
    colour: Colour = "srgb" if made.colour == "srgb" else "stored"
    try:
        with catalogue.open_slide(pool.slide_ids[pool.slide_N[rows[0]]]) as slide:
            for first in range(0, len(rows), TILES_AT_ONCE):
                part = rows[first : first + TILES_AT_ONCE].tolist()
                corners = pool.corner_N2[part].tolist()
                windows = [TileWindow(x, y, made.tile_px, made.mpp) for x, y in corners]
                yield from zip(part, read_tiles(slide, windows, colour=colour), strict=True)
    except (AnlageError, OSError) as error:
        told = error if isinstance(error, AnlageError) else SlideError("slide", str(error))
        yield from ((row, told) for row in rows.tolist())


def _judged_slide(
    pool: TilePool, catalogue: Catalogue, judge: Judge, slide: int
) -> dict[int, str | AnlageError]:
    """What is said of each tile of a slide; a slide that breaks off loses what it gave before."""
    first, last = np.searchsorted(pool.slide_N, (slide, slide + 1))
    found: dict[int, str | AnlageError] = {}
    rows = np.arange(first, last)
    for row, pixels in read_pool_tiles(pool, catalogue, rows) if len(rows) else ():
        found[row] = pixels if isinstance(pixels, AnlageError) else judge(pixels)
    return found


def _first_to_reject(pixels: Pixels, *, filters: Sequence[TileFilter], mpp: float) -> str:
    return next((judge.name for judge in filters if not judge.keeps(pixels, mpp=mpp)), "")
