"""Which tile is drawn for global index g: a pure function of (seed, g, attempt)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anlage.errors import TrainingError
from anlage.geometry import level0_px
from anlage.slides.catalogue import Catalogue, SlideRow
from anlage.slides.levels import TOLERANCE
from anlage.tiles.keyed_random import Purpose, uniforms
from anlage.tiles.places import Places, find_places

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SampledSlide:
    """What the sampler must know of a slide.

    Attributes:
        slide_id: Name of the slide.
        width: Width of level 0, pixels.
        height: Height of level 0, pixels.
        mpp: Resolution of level 0, micrometres per pixel.
        mask: (H, W) bool tissue mask covering the whole slide; not kept after construction.
        mask_mpp: Resolution of the mask, micrometres per pixel.
        weight: How often the slide is drawn relative to others, >= 0.
    """

    slide_id: str
    width: int
    height: int
    mpp: float
    mask: NDArray[np.bool_]
    mask_mpp: float
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class TileRequest:
    """One tile to read.

    Attributes:
        g: Global index of the sample.
        attempt: Which draw of that sample this is; later ones replace tiles that cannot be read.
        slide: Row of the slide in the sampler's ``slide_ids``.
        slide_id: Name of the slide.
        x: Left edge, level-0 pixels.
        y: Top edge, level-0 pixels.
        mpp: Resolution to read at, micrometres per pixel.
        size_px: Edge of the tile in pixels at ``mpp``.
    """

    g: int
    attempt: int
    slide: int
    slide_id: str
    x: int
    y: int
    mpp: float
    size_px: int


@dataclass(frozen=True, slots=True)
class UnusableSlide:
    """A slide that cannot give tiles at one resolution, and why."""

    slide_id: str
    mpp: float
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class _Magnification:
    """The slides that can give tiles at one mpp, with their cumulative weights, the last 1."""

    mpp: float
    rows: list[int]
    places: list[Places]
    shares: NDArray[np.float64]


class TileSampler:
    """Draws tiles over slides and magnifications.

    The magnification is drawn by its weight, then a slide by its weight among those that have
    tissue enough at that magnification, then one of the slide's places, each as likely. The places
    with enough tissue are found once, at construction, so no draw is wasted on glass and a slide
    with little tissue is drawn as often as its weight says.

    A slide that is too small, too coarse or without one place that holds ``min_tissue`` at some
    magnification is left out there, logged, and named in ``unusable``.

    Attributes:
        slide_ids: Names of all slides given; ``TileRequest.slide`` is a row of it.
        size_px: Edge of every tile, pixels at its mpp.
        seed: Seed of the draws.
        unusable: What was left out, and why.
    """

    def __init__(
        self,
        slides: Iterable[SampledSlide],
        *,
        seed: int,
        size_px: int,
        magnifications: Mapping[float, float],
        min_tissue: float,
    ) -> None:
        _refuse_unfit_settings(size_px, magnifications, min_tissue)
        self.size_px, self.seed = size_px, seed
        self.unusable: list[UnusableSlide] = []
        chosen = {mpp: weight for mpp, weight in sorted(magnifications.items()) if weight > 0}
        weights: dict[str, float] = {}
        found: dict[float, dict[int, Places]] = {mpp: {} for mpp in chosen}
        for row, slide in enumerate(slides):  # one mask at a time
            _refuse_unless(slide.slide_id not in weights, "unique slide_ids", slide.slide_id)
            weights[slide.slide_id] = slide.weight
            for mpp in chosen if slide.weight > 0 else ():
                places = self._places_or_note(slide, mpp, min_tissue)
                if places is not None:
                    found[mpp][row] = places
        _refuse_unfit_weights(list(weights.values()))
        self.slide_ids = tuple(weights)
        self._magnifications = [
            self._magnification(mpp, places, list(weights.values()))
            for mpp, places in found.items()
        ]
        self._shares = _cumulative(list(chosen.values()))

    def draw(self, g: int, *, attempt: int = 0) -> TileRequest:
        """The tile of sample ``g``; another one for each ``attempt``, slide included."""
        u = uniforms(5, seed=self.seed, g=g, purpose=Purpose.TILE, item=attempt).tolist()
        magnification = self._magnifications[_pick(self._shares, u[0])]
        nth = _pick(magnification.shares, u[1])
        x, y = magnification.places[nth].corner(u[2], u[3], u[4])
        slide = magnification.rows[nth]
        return TileRequest(
            g=g,
            attempt=attempt,
            slide=slide,
            slide_id=self.slide_ids[slide],
            x=x,
            y=y,
            mpp=magnification.mpp,
            size_px=self.size_px,
        )

    def _magnification(
        self, mpp: float, places: Mapping[int, Places], weights: Sequence[float]
    ) -> _Magnification:
        if not places:
            reasons = sorted({u.reason for u in self.unusable if u.mpp == mpp})
            msg = (
                f"needs a slide that gives {self.size_px} px tiles at {mpp:g} mpp; got none "
                f"({'; '.join(reasons[:3])}). Lower min_tissue or the tile size, leave this mpp "
                "out, or add slides."
            )
            raise TrainingError(", ".join(self.slide_ids[:5]), msg)
        shares = _cumulative([weights[row] for row in places])
        return _Magnification(mpp, list(places), list(places.values()), shares)

    def _places_or_note(self, slide: SampledSlide, mpp: float, min_tissue: float) -> Places | None:
        """Where the slide gives tiles; None, logged and noted, if it gives none."""
        found = self._places(slide, mpp, min_tissue)
        if not isinstance(found, str):
            return found
        self.unusable.append(UnusableSlide(slide.slide_id, mpp, found))
        LOGGER.warning("%s: no tiles at %g mpp: %s", slide.slide_id, mpp, found)
        return None

    def _places(self, slide: SampledSlide, mpp: float, min_tissue: float) -> Places | str:
        """Where the slide gives tiles, or the reason why it gives none."""
        if mpp < slide.mpp / (1 + TOLERANCE):
            return f"the slide is coarser, {slide.mpp:g} mpp"
        edge = level0_px(self.size_px, mpp=mpp, slide_mpp=slide.mpp)
        if edge > min(slide.width, slide.height):
            return f"a tile is {edge:g} pixels wide, the slide {slide.width} x {slide.height}"
        try:
            places = find_places(
                slide.mask,
                slide_size=(slide.width, slide.height),
                per_mask_px=level0_px(1, mpp=slide.mask_mpp, slide_mpp=slide.mpp),
                edge=edge,
                min_tissue=min_tissue,
            )
        except ValueError as error:  # this slide's mask does not fit; others may
            return str(error)
        return places if places.n_places else f"no place holds {min_tissue:g} tissue"


def batch_indices(
    step: int, *, batch_size: int, rank: int = 0, world_size: int = 1
) -> NDArray[np.int64]:
    """Global indices, (batch_size,) int64, that one rank (or micro-batch) takes in one step.

    ``g = step * world_size * batch_size + rank * batch_size + slot``: the ranks of a step split the
    same samples whatever their number, as long as the global batch is the same.
    """
    first = (step * world_size + rank) * batch_size
    return np.arange(first, first + batch_size, dtype=np.int64)


def sampler_from_catalogue(
    catalogue: Catalogue,
    *,
    seed: int,
    size_px: int,
    magnifications: Mapping[float, float],
    min_tissue: float,
    weights: Mapping[str, float] | None = None,
) -> TileSampler:
    """A sampler over every slide of a catalogue.

    Args:
        catalogue: The slides and their tissue masks.
        seed: Seed of the draws.
        size_px: Edge of every tile, pixels at its mpp.
        magnifications: Weight of each mpp, micrometres per pixel.
        min_tissue: Smallest tissue fraction of a tile, 0 to 1.
        weights: Weight of each slide_id; 1 for those left out.

    Raises:
        ValueError: If a setting is out of range, or a weight names a slide that is not there.
        TrainingError: If some magnification has no usable slide.
    """
    given, rows = dict(weights or {}), catalogue.rows()
    unknown = sorted(given.keys() - {row.slide_id for row in rows})
    if unknown:
        msg = (
            f"sampler_from_catalogue: needs weights of slides in the catalogue; got {unknown}"
            ", which are not. Correct the names or leave them out."
        )
        raise ValueError(msg)
    return TileSampler(
        (_sampled(catalogue, row, weight=given.get(row.slide_id, 1.0)) for row in rows),
        seed=seed,
        size_px=size_px,
        magnifications=magnifications,
        min_tissue=min_tissue,
    )


def _sampled(catalogue: Catalogue, row: SlideRow, *, weight: float) -> SampledSlide:
    tissue = catalogue.mask(row.slide_id)
    return SampledSlide(
        slide_id=row.slide_id,
        width=row.width,
        height=row.height,
        mpp=row.mpp,
        mask=tissue.mask,
        mask_mpp=tissue.mpp,
        weight=weight,
    )


def _pick(shares: NDArray[np.float64], u: float) -> int:
    return int(np.searchsorted(shares, u, side="right"))


def _cumulative(weights: Sequence[float]) -> NDArray[np.float64]:
    """Cumulative shares; the last is 1 exactly, so that no number below 1 falls off the end."""
    total = np.cumsum(np.asarray(weights, dtype=np.float64))
    return np.asarray(total / total[-1], dtype=np.float64)


def _refuse_unfit_settings(
    size_px: int, magnifications: Mapping[float, float], min_tissue: float
) -> None:
    _refuse_unless(size_px >= 1, "size_px >= 1", size_px)
    _refuse_unless(
        _are_weights(list(magnifications.values())) and min(magnifications) > 0,
        "an mpp > 0 with a weight >= 0, not all 0",
        dict(magnifications),
    )
    _refuse_unless(0 <= min_tissue <= 1, "min_tissue from 0 to 1", min_tissue)


def _refuse_unfit_weights(weights: Sequence[float]) -> None:
    _refuse_unless(len(weights) > 0, "at least one slide", 0)
    _refuse_unless(_are_weights(weights), "slide weights >= 0, not all 0", weights[:9])


def _refuse_unless(holds: bool, rule: str, got: object) -> None:  # noqa: FBT001 - the claim itself
    if not holds:
        msg = f"TileSampler: needs {rule}; got {got}. Correct the recipe or the catalogue."
        raise ValueError(msg)


def _are_weights(weights: Sequence[float]) -> bool:
    array = np.asarray(weights, dtype=np.float64)
    return bool(np.isfinite(array).all() and (array >= 0).all() and array.sum() > 0)
