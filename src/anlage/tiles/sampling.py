"""Which tile is drawn for global index g: a pure function of (seed, g, attempt).

Shape suffixes: N samples, S slides, W regions of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from math import floor

import numpy as np
from numpy.typing import NDArray

from anlage.errors import TrainingError
from anlage.slides.catalogue import Catalogue
from anlage.slides.levels import TileWindow
from anlage.tiles.grid import ROUNDING
from anlage.tiles.keyed_random import Purpose, uniforms, uniforms_of
from anlage.tiles.magnification import ContinuousMpp, DiscreteMpp, Magnifications
from anlage.tiles.place_cache import PlaceCache, SlidePlaces
from anlage.tiles.slide_choice import SlideChoice
from anlage.tiles.slide_columns import SlideNames, mpp_ranges, refuse_uncovered
from anlage.tiles.weights import Base, balanced, base_weights
from anlage.tiles.windows import Windows

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
WINDOWS_KEPT = 8
MAX_TRIES = 1000  # slides without a place that one draw may meet
TRY = 1 << 32  # numbers of try t of attempt k of a sample: item ``k + t * TRY``


@dataclass(frozen=True, slots=True)
class TileRequest:
    """One tile to read.

    Attributes:
        g: Global index of the sample.
        attempt: Which draw of that sample this is; later ones replace tiles that cannot be read.
        slide: Row of the slide in the catalogue.
        slide_id: Name of the slide.
        x: Left edge, level-0 pixels.
        y: Top edge, level-0 pixels.
        mpp: Resolution to read at, micrometres per pixel.
        size_px: Edge of the tile in pixels at ``mpp``.
        views: What to read: the tile itself, then the same centre at the other resolutions.
    """

    g: int
    attempt: int
    slide: int
    slide_id: str
    x: int
    y: int
    mpp: float
    size_px: int
    views: tuple[TileWindow, ...]


@dataclass(frozen=True, slots=True, eq=False)
class SlideDraws:
    """First choices of many samples, before any place is looked up.

    Attributes:
        region: (N,) int64 regions that the samples belong to.
        slide: (N,) int64 rows of the catalogue.
        mpp: (N,) float64 resolutions, micrometres per pixel.
        numbers: (N, 3) float64 in [0, 1) that choose the place, x and y.
    """

    region: Integers
    slide: Integers
    mpp: Floats
    numbers: Floats


@dataclass(frozen=True, slots=True, eq=False)
class _WindowPlan:
    """First choices of the W regions of a window and its N samples, region after region."""

    slide_W: Integers
    mpp_W: Floats
    block_W2: Floats
    g_N: Integers
    numbers_N3: Floats
    starts: list[int]


class TileSampler:
    """Draws tiles over slides and resolutions.

    Samples are dealt to regions (see ``Windows``); a region lies on one slide, at one resolution.
    Over the regions of a window slides and resolutions are sampled systematically, by their exact
    shares. A region's first tile is any of the slide's places, each as likely; the others are
    places within one block of native tiles around it, which is decoded once.

    A slide that turns out to have no place with enough tissue, or is in quarantine, is replaced by
    another at the same resolution, drawn by weight and by the same seed: still a function of g.

    Attributes:
        size_px: Edge of every tile, pixels at its mpp.
        seed: Seed of the draws.
        batch_size: Samples of a step, over all ranks.
        tiles_per_region: Most tiles that share a region.
        view_mpp_factors: Resolutions of a tile's views over its own; the first is 1.
    """

    def __init__(
        self,
        slide_ids: Callable[[int], str],
        choice: SlideChoice,
        places: PlaceCache,
        *,
        windows: Windows,
        size_px: int,
        view_mpp_factors: tuple[float, ...] = (1.0,),
    ) -> None:
        """Made by ``sampler_from_catalogue``."""
        self.size_px, self.view_mpp_factors = size_px, view_mpp_factors
        self.seed, self.batch_size = windows.seed, windows.batch_size
        self.tiles_per_region = windows.tiles_per_region
        self._slide_id, self._choice, self._places = slide_ids, choice, places
        self._windows = windows
        self._quarantine: dict[str, int] = {}
        self._plan = lru_cache(WINDOWS_KEPT)(partial(_first_choices, choice, windows))

    @property
    def steps_per_window(self) -> int:
        """Steps whose samples share regions."""
        return self._windows.steps

    @property
    def unusable(self) -> dict[tuple[str, float], str]:
        """Why slides were found to have no place, by slide_id and mpp; grows as they are drawn."""
        return self._places.unusable

    def region_of(self, g_N: Integers) -> Integers:
        """Region of each sample, (N,) int64."""
        return self._windows.region_of(g_N)

    def samples_of(self, region: int) -> Integers:
        """The samples of a region, (n,) int64: 1 to ``tiles_per_region`` of them."""
        return self._windows.samples_of(region)

    def quarantine(self, slide_id: str, *, from_step: int) -> None:
        """Draw a slide no more from a step on.

        Args:
            slide_id: The slide.
            from_step: The first step of a window.

        Raises:
            ValueError: If it is not.
        """
        if from_step % self.steps_per_window:
            msg = (
                f"TileSampler.quarantine: needs the first step of a window of "
                f"{self.steps_per_window}; got {from_step}. Quarantine from the next one on."
            )
            raise ValueError(msg)
        earlier = self._quarantine.get(slide_id, from_step)
        self._quarantine[slide_id] = min(earlier, from_step)

    def draw(self, g: int, *, attempt: int = 0) -> TileRequest:
        """The tile of one sample.

        Args:
            g: Global index of the sample.
            attempt: 0 for the tile of its region; later ones are tiles on slides of their own.

        Raises:
            TrainingError: If 1,000 slides in a row have no place.
        """
        if attempt == 0:
            region = int(self.region_of(np.array([g], dtype=np.int64))[0])
            return next(tile for tile in self.draw_region(region) if tile.g == g)
        key: dict[str, int] = {"seed": self.seed, "g": g}
        numbers = uniforms(5, **key, purpose=Purpose.TILE, item=attempt)
        slide_N, mpp_N = self._choice.draw(numbers[1:2], numbers[:1])
        mpp = float(mpp_N[0])
        slide, found = self._with_places(
            int(slide_N[0]),
            mpp,
            step=g // self.batch_size,
            redraw=lambda t: float(
                uniforms(1, **key, purpose=Purpose.TILE, item=attempt + t * TRY)[0]
            ),
        )
        corner = found.places.corner(*numbers[2:].tolist())
        return self._request(g, slide, found, corner=corner, mpp=mpp, attempt=attempt)

    def draw_region(self, region: int) -> list[TileRequest]:
        """The tiles of a region, in the order of ``samples_of``; all of one slide and mpp.

        Raises:
            TrainingError: If 1,000 slides in a row have no place.
        """
        window, nth = divmod(region, self._windows.n_regions)
        plan = self._plan(window)
        mpp = float(plan.mpp_W[nth])
        key: dict[str, int] = {"seed": self.seed, "g": region}
        slide, found = self._with_places(
            int(plan.slide_W[nth]),
            mpp,
            step=self._windows.first_step(region),
            redraw=lambda t: float(uniforms(1, **key, purpose=Purpose.REGION, item=t)[0]),
        )
        own = slice(plan.starts[nth], plan.starts[nth + 1])
        numbers_N3 = plan.numbers_N3[own]
        corners = [found.places.corner(*numbers_N3[0].tolist())]
        if len(numbers_N3) > 1:
            u_x, u_y = plan.block_W2[nth].tolist()
            block = found.shape.corners_around(corners[0], (u_x, u_y))
            others = found.places.corners_within(block, numbers_N3[1:])
            corners += [(x, y) for x, y in others.tolist()]
        samples = zip(plan.g_N[own].tolist(), corners, strict=True)
        return [self._request(g, slide, found, corner=corner, mpp=mpp) for g, corner in samples]

    def draw_many(self, g_N: Integers) -> SlideDraws:
        """Slides and resolutions of many samples, as first drawn: no mask is looked at."""
        region_N = self.region_of(g_N)
        regions, inverse_N = np.unique(region_N, return_inverse=True)
        slide, mpp = self._choice.draw(*self._windows.quantiles(regions))
        return SlideDraws(
            region_N, slide[inverse_N], mpp[inverse_N], _place_numbers(g_N, seed=self.seed)
        )

    def _with_places(
        self, slide: int, mpp: float, *, step: int, redraw: Callable[[int], float]
    ) -> tuple[int, SlidePlaces]:
        """The slide, or the first drawn after it at the same mpp, that gives tiles in a step."""
        candidate: int | None = slide
        for number in range(1, MAX_TRIES + 1):
            if candidate is not None:
                slide_id = self._slide_id(candidate)
                if step < self._quarantine.get(slide_id, step + 1):
                    found = self._places.find(slide_id, mpp)
                    if found is not None:
                        return candidate, found
            candidate = self._choice.another(redraw(number), mpp)
        raise TrainingError(self._slide_id(slide), self._why_nothing(mpp))

    def _why_nothing(self, mpp: float) -> str:
        reasons = sorted(set(self.unusable.values()))[:3]
        reasons += ["in quarantine"] if self._quarantine else []
        return (
            f"and {MAX_TRIES - 1} slides drawn after it give no {self.size_px} px tiles at {mpp:g} "
            f"mpp ({'; '.join(reasons)}). Lower min_tissue or the tile size, leave this mpp out, "
            "or add slides."
        )

    def _request(
        self,
        g: int,
        slide: int,
        found: SlidePlaces,
        *,
        corner: tuple[int, int],
        mpp: float,
        attempt: int = 0,
    ) -> TileRequest:
        x, y = corner
        views = [TileWindow(x, y, self.size_px, mpp)]
        for factor in self.view_mpp_factors[1:]:
            wider = found.shape.edge * (factor - 1) / 2
            left, top = floor(x - wider + ROUNDING), floor(y - wider + ROUNDING)
            views.append(TileWindow(left, top, self.size_px, mpp * factor))
        return TileRequest(
            *(g, attempt, slide, found.slide_id, x, y, mpp, self.size_px, tuple(views))
        )


def _first_choices(choice: SlideChoice, windows: Windows, window: int) -> _WindowPlan:
    """First choices of a whole window: drawn at once, they cost a tenth."""
    n = windows.n_regions
    region_W = np.arange(window * n, (window + 1) * n)
    g_N, starts = windows.samples_of_window(window)
    slide_W, mpp_W = choice.draw(*windows.quantiles(region_W))
    block_W2 = uniforms_of(2, seed=windows.seed, g_N=region_W, purpose=Purpose.REGION)
    numbers_N3 = _place_numbers(g_N, seed=windows.seed)
    return _WindowPlan(slide_W, mpp_W, block_W2, g_N, numbers_N3, starts.tolist())


def _place_numbers(g_N: Integers, *, seed: int) -> Floats:
    """What chooses the places of samples, (N, 3)."""
    return uniforms_of(3, seed=seed, g_N=g_N, purpose=Purpose.TILE)


def sampler_from_catalogue(
    catalogue: Catalogue,
    *,
    seed: int,
    size_px: int,
    batch_size: int,
    magnifications: Mapping[float, float] | ContinuousMpp,
    min_tissue: float,
    tiles_per_region: int = 1,
    balance: Mapping[str, float] | None = None,
    base: Base = "slide",
    view_mpp_factors: tuple[float, ...] = (1.0,),
) -> TileSampler:
    """A sampler over every slide of a catalogue.

    Reads columns only: millions of slides take seconds. Slides that the columns show to be too
    coarse, too small or without tissue at some resolution are not drawn there; those that are not
    drawn at all do not count in the frequencies that are balanced.

    Args:
        catalogue: The slides and their tissue masks.
        seed: Seed of the draws.
        size_px: Edge of every tile, pixels at its mpp.
        batch_size: Samples of a step, over all ranks.
        magnifications: Share of each mpp, micrometres per pixel; or a continuous range.
        min_tissue: Smallest tissue fraction of a tile, 0 to 1.
        tiles_per_region: Tiles cut from one decoded region.
        balance: Alpha, 0 to 1, of columns: slides weigh frequency ** -alpha of their value.
        base: ``slide``: slides weigh the same before balancing; ``tissue_area``: by their tissue.
        view_mpp_factors: Resolutions to read each tile's centre at, over its own; the first is 1.
            ``min_tissue`` holds for the tile itself; every view lies on the slide.

    Raises:
        ValueError: If a setting is out of range or a column is not there.
        TrainingError: If no slide gives tiles at some resolution.
    """
    _refuse_unless(len(catalogue) > 0, "at least one slide", 0)
    _refuse_unless(size_px >= 1, "size_px >= 1", size_px)
    _refuse_unless(batch_size >= 1, "batch_size >= 1", batch_size)
    _refuse_unless(tiles_per_region >= 1, "tiles_per_region >= 1", tiles_per_region)
    _refuse_unless(0 <= min_tissue <= 1, "min_tissue from 0 to 1", min_tissue)
    are_views = view_mpp_factors[:1] == (1.0,) and min(view_mpp_factors) > 0
    _refuse_unless(are_views, "view_mpp_factors > 0, the first of them 1", view_mpp_factors)
    law: Magnifications
    if isinstance(magnifications, ContinuousMpp):
        law = magnifications
    else:
        law = DiscreteMpp(magnifications)
    ranges = mpp_ranges(catalogue, size_px=size_px, view_mpp_factors=view_mpp_factors)
    span = law.span(*ranges)
    weight_S = base_weights(catalogue, base, min_tissue=min_tissue) * (span[1] > span[0])
    choice = SlideChoice(law, balanced(weight_S, catalogue, balance or {}), span=span)
    refuse_uncovered(catalogue, choice, size_px=size_px)
    places = PlaceCache(
        catalogue,
        size_px=size_px,
        min_tissue=min_tissue,
        tiles_per_region=tiles_per_region,
        largest_view=max(view_mpp_factors),
    )
    return TileSampler(
        SlideNames(catalogue),
        choice,
        places,
        windows=Windows(seed, batch_size, tiles_per_region),
        size_px=size_px,
        view_mpp_factors=view_mpp_factors,
    )


def _refuse_unless(holds: bool, rule: str, got: object) -> None:  # noqa: FBT001 - the claim itself
    if not holds:
        msg = f"TileSampler: needs {rule}; got {got}. Correct the recipe or the catalogue."
        raise ValueError(msg)
