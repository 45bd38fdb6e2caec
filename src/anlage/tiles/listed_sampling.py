"""Draws the tiles of a list: each as often as its weight says, in an order of the seed.

Shape suffixes: N listed tiles, S slides of the list.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import ceil

import numpy as np
from numpy.typing import NDArray

from anlage.errors import CatalogueError, TrainingError
from anlage.slides.catalogue import Catalogue
from anlage.slides.levels import TOLERANCE, TileWindow
from anlage.tiles.grid import ROUNDING
from anlage.tiles.keyed_random import Purpose, uniforms, words_of
from anlage.tiles.sampling import MAX_TRIES, TRY, TileRequest
from anlage.tiles.tile_list import TileList
from anlage.tiles.windows import Windows

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
PASSES_KEPT = 2
SAME_MPP = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class _Slides:
    """The slides of a list as their catalogue knows them.

    Attributes:
        row_S: (S,) int64 rows of the catalogue.
        size_S2: (S, 2) int64 width and height of level 0, pixels.
        mpp_S: (S,) float64 resolution of level 0, micrometres per pixel.
    """

    row_S: Integers
    size_S2: Integers
    mpp_S: Floats


class ListedTileSampler:
    """Draws over a list of tiles, pass after pass.

    A pass is as many draws as tiles are listed with a weight above 0. Over one pass every tile is
    drawn as often as its weight says, rounded up or down (systematic sampling): once each where
    all weigh the same. Their order is a permutation keyed by the seed and the pass, so the tile of
    sample g is a function of the seed, the list and g.

    A tile larger or smaller than the listed one has the same centre, moved by as much as it takes
    to lie on the slide. Slides in quarantine are replaced by draws of the same law.

    Attributes:
        size_px: Edge of every tile, pixels at its mpp.
        seed: Seed of the draws.
        batch_size: Samples of a step, over all ranks.
        view_mpp_factors: (1.0,): one view a tile.
    """

    def __init__(
        self, tiles: TileList, slides: _Slides, *, seed: int, size_px: int, batch_size: int
    ) -> None:
        """Made by ``sampler_from_list``."""
        self.size_px, self.seed, self.batch_size = size_px, seed, batch_size
        self.view_mpp_factors = (1.0,)
        self._tiles, self._slides = tiles, slides
        self._drawn_N = np.flatnonzero(tiles.weight_N > 0)
        n_drawn = len(self._drawn_N)
        weight_N = tiles.weight_N[self._drawn_N]
        self._ends_N = np.cumsum(weight_N)  # of whole weights that are all 1: exact
        self._ends_N *= n_drawn / self._ends_N[-1]
        self._ends_N[-1] = n_drawn
        self._quarantine: dict[str, int] = {}
        self._lock = threading.Lock()
        self._order_of = lru_cache(PASSES_KEPT)(self._order)

    @property
    def draws_per_pass(self) -> int:
        """Draws over which every tile is drawn as often as its weight says."""
        return len(self._drawn_N)

    @property
    def steps_per_window(self) -> int:
        """Steps from whose first a quarantine can hold."""
        return Windows(self.seed, self.batch_size, 1).steps

    def region_of(self, g_N: Integers) -> Integers:
        """Region of each sample, (N,) int64: its own."""
        return g_N

    def draw_region(self, region: int) -> list[TileRequest]:
        """The one tile of a region."""
        return [self.draw(region)]

    def quarantine(self, slide_id: str, *, from_step: int) -> None:
        """Draw a slide no more from a step on.

        Args:
            slide_id: The slide.
            from_step: The first step of that.
        """
        earlier = self._quarantine.get(slide_id, from_step)
        self._quarantine[slide_id] = min(earlier, from_step)

    def draw(self, g: int, *, attempt: int = 0) -> TileRequest:
        """The tile of one sample.

        Args:
            g: Global index of the sample.
            attempt: 0 for its place in the pass; later ones are drawn by weight alone.

        Raises:
            TrainingError: If 1,000 tiles in a row lie on slides in quarantine.
        """
        step = g // self.batch_size
        for number in range(MAX_TRIES):
            tile = self._in_pass(g) if attempt == number == 0 else self._any(g, attempt, number)
            slide_id = self._tiles.slide_ids[self._tiles.slide_N[tile]]
            if step < self._quarantine.get(slide_id, step + 1):
                return self._request(g, tile, attempt=attempt)
        msg = (
            f"and {MAX_TRIES - 1} tiles drawn after it lie on slides in quarantine. Check that the "
            "slides are still where the catalogue says."
        )
        raise TrainingError(slide_id, msg)

    def _in_pass(self, g: int) -> int:
        number, place = divmod(g, self.draws_per_pass)
        with self._lock:  # one thread makes the order of a pass, the others wait for it
            order, offset = self._order_of(number)
        return self._tile_at(float(order[place]) + offset)

    def _any(self, g: int, attempt: int, number: int) -> int:
        item = attempt + number * TRY
        (u,) = uniforms(1, seed=self.seed, g=g, purpose=Purpose.TILE, item=item)
        return self._tile_at(float(u) * self.draws_per_pass)

    def _tile_at(self, position: float) -> int:
        """The tile at a place of the weights laid end to end, 0 to ``draws_per_pass``."""
        nth = int(np.searchsorted(self._ends_N, position, side="right"))
        return int(self._drawn_N[min(nth, self.draws_per_pass - 1)])

    def _order(self, number: int) -> tuple[Integers, float]:
        """The permutation of a pass, (draws_per_pass,), and the offset of its systematic draws."""
        n = self.draws_per_pass
        words = words_of(n, seed=self.seed, g_N=[number], purpose=Purpose.LIST)[0]
        (offset,) = uniforms(1, seed=self.seed, g=number, purpose=Purpose.LIST, item=1)
        return np.argsort(words, kind="stable"), float(offset)

    def _request(self, g: int, tile: int, *, attempt: int) -> TileRequest:
        tiles, slides = self._tiles, self._slides
        slide = int(tiles.slide_N[tile])
        mpp = float(tiles.mpp_N[tile])
        listed, edge = (
            n * mpp / float(slides.mpp_S[slide]) for n in (int(tiles.tile_px_N[tile]), self.size_px)
        )
        x, y = (
            corner
            if self.size_px == tiles.tile_px_N[tile]
            else _centred(corner, length, listed, edge)
            for corner, length in zip(
                tiles.corner_N2[tile].tolist(), slides.size_S2[slide].tolist(), strict=True
            )
        )
        return TileRequest(
            g=g,
            attempt=attempt,
            slide=int(slides.row_S[slide]),
            slide_id=tiles.slide_ids[slide],
            x=x,
            y=y,
            mpp=mpp,
            size_px=self.size_px,
            views=(TileWindow(x, y, self.size_px, mpp),),
        )


def _centred(corner: int, length: int, listed: float, edge: float) -> int:
    """Corner of a tile with the centre of a listed one, moved onto the slide."""
    return min(max(round(corner + (listed - edge) / 2), 0), length - ceil(edge - ROUNDING))


def sampler_from_list(
    catalogue: Catalogue,
    tiles: TileList,
    *,
    path: str,
    seed: int,
    size_px: int,
    batch_size: int,
    magnifications: Mapping[float, float],
) -> ListedTileSampler:
    """A sampler over the tiles of a list.

    Args:
        catalogue: The slides that may be drawn; no mask is looked at.
        tiles: The list.
        path: Its file, for messages.
        seed: Seed of the draws.
        size_px: Edge of every tile, pixels at its mpp.
        batch_size: Samples of a step, over all ranks.
        magnifications: Share of each mpp; those of the list and no others.

    Raises:
        CatalogueError: If a listed tile is of a slide that is not in the catalogue or is too coarse
            for it, does not lie on its slide, or has another mpp than these.
    """
    slides = _slides_of(catalogue, tiles, path=path)
    _refuse_unfit(tiles, slides, size_px=size_px, path=path)
    shared = _with_shares(tiles, magnifications, path=path)
    return ListedTileSampler(shared, slides, seed=seed, size_px=size_px, batch_size=batch_size)


def _slides_of(catalogue: Catalogue, tiles: TileList, *, path: str) -> _Slides:
    row_of = {name: row for row, name in enumerate(catalogue.column("slide_id").to_pylist())}
    unknown = [name for name in tiles.slide_ids if name not in row_of]
    if unknown:
        msg = (
            f"lists tiles of {len(unknown)} slides that are not among the {len(catalogue)} trained "
            f"on ({', '.join(unknown[:5])}). Curate slides of the run's catalogue and tiles.split "
            "only."
        )
        raise CatalogueError(path, msg)
    row_S = np.array([row_of[name] for name in tiles.slide_ids], dtype=np.int64)
    size_S2 = np.stack([catalogue.column(n).to_numpy()[row_S] for n in ("width", "height")], axis=1)
    return _Slides(row_S, size_S2.astype(np.int64), catalogue.column("mpp").to_numpy()[row_S])


def _refuse_unfit(tiles: TileList, slides: _Slides, *, size_px: int, path: str) -> None:
    slide_mpp_N = slides.mpp_S[tiles.slide_N]
    edge_N, wanted_N = (n * tiles.mpp_N / slide_mpp_N for n in (tiles.tile_px_N, size_px))
    size_N2 = slides.size_S2[tiles.slide_N]
    rules = {
        "slides at least as fine as its tiles": slide_mpp_N > tiles.mpp_N * (1 + TOLERANCE),
        "tiles that lie on their slides": (
            tiles.corner_N2 + edge_N[:, None] > size_N2 + 1 + ROUNDING
        ).any(axis=1),
        f"slides that hold tiles of {size_px} px": (wanted_N[:, None] > size_N2 + ROUNDING).any(
            axis=1
        ),
    }
    for rule, is_wrong in rules.items():
        if is_wrong.any():
            row = int(is_wrong.argmax())
            x, y = tiles.corner_N2[row].tolist()
            msg = (
                f"needs {rule}; got {int(is_wrong.sum())} that do not, first {x},{y} of "
                f"{tiles.slide_ids[tiles.slide_N[row]]} at {tiles.mpp_N[row]:g} mpp. "
                "Is it of this catalogue? Curate again, or leave those tiles out."
            )
            raise CatalogueError(path, msg)


def _with_shares(tiles: TileList, magnifications: Mapping[float, float], *, path: str) -> TileList:
    """The list with each resolution weighing as much as its share."""
    found = np.unique(tiles.mpp_N).tolist()
    wanted = sorted(magnifications)
    is_same = len(found) == len(wanted) and np.allclose(found, wanted, rtol=SAME_MPP, atol=0)
    if not is_same:
        listed, asked = (", ".join(f"{mpp:g}" for mpp in mpps) for mpps in (found, wanted))
        msg = (
            f"lists tiles at {listed} mpp; the recipe draws {asked}. Set tiles.magnifications to "
            "the list's, with a share for each."
        )
        raise CatalogueError(path, msg)
    if len(found) == 1:
        return tiles
    weight_N = tiles.weight_N.copy()
    for mpp, key in zip(found, wanted, strict=True):
        is_its = tiles.mpp_N == mpp
        weight = weight_N[is_its].sum()
        if weight == 0 and magnifications[key] > 0:
            msg = f"gives no weight to any tile at {mpp:g} mpp, which the recipe draws. "
            raise CatalogueError(path, msg + "Leave it out of tiles.magnifications.")
        weight_N[is_its] *= magnifications[key] / max(weight, 1e-300)
    return TileList(
        slide_ids=tiles.slide_ids,
        slide_N=tiles.slide_N,
        corner_N2=tiles.corner_N2,
        mpp_N=tiles.mpp_N,
        tile_px_N=tiles.tile_px_N,
        weight_N=weight_N,
        cluster_NT=tiles.cluster_NT,
        about=tiles.about,
    )
