"""Where slides give tiles: found from their masks when first drawn, kept while there is room."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from dataclasses import dataclass

from anlage.geometry import Size, level0_px
from anlage.slides.catalogue import Catalogue, SlideRow
from anlage.slides.levels import choose_level
from anlage.slides.reader import Level
from anlage.tiles.places import Places, find_places
from anlage.tiles.region_block import RegionShape

LOGGER = logging.getLogger(__name__)
MAX_BYTES = 256 << 20
ENTRY_BYTES = 1 << 10  # what an entry takes beside its places
MOST_UNUSABLE = 100_000  # kept; over a range of resolutions nearly every draw has one of its own


@dataclass(frozen=True, slots=True, eq=False)
class SlidePlaces:
    """Where one slide gives tiles at one resolution.

    Attributes:
        slide_id: Name of the slide.
        places: Where tiles hold enough tissue.
        shape: What the blocks of its regions look like.
    """

    slide_id: str
    places: Places
    shape: RegionShape


class PlaceCache:
    """Places by slide and resolution, the most recently used up to 256 MB; safe between threads.

    Attributes:
        unusable: Why slides have no place, by slide_id and mpp, of the first 100,000; logged once
            for each slide.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        size_px: int,
        min_tissue: float,
        tiles_per_region: int,
        largest_view: float,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """Args as those of ``sampler_from_catalogue``; the largest factor of a view's mpp."""
        self.unusable: dict[tuple[str, float], str] = {}
        self._catalogue, self._size_px, self._min_tissue = catalogue, size_px, min_tissue
        self._tiles_per_region, self._largest_view = tiles_per_region, largest_view
        self._max_bytes, self._n_bytes = max_bytes, 0
        self._lock = threading.Lock()
        self._noted: set[str] = set()
        self._found: OrderedDict[tuple[str, float], SlidePlaces] = OrderedDict()

    def find(self, slide_id: str, mpp: float) -> SlidePlaces | None:
        """A slide's places for tiles at ``mpp`` micrometres per pixel; None if it has none."""
        key = slide_id, mpp
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
                return self._found[key]
            if key in self.unusable:
                return None
        found = self._search(slide_id, mpp)  # two threads may do so at once; both find the same
        if isinstance(found, str):
            self._note(slide_id, mpp, found)
            return None
        self._keep(key, found)
        return found

    def _search(self, slide_id: str, mpp: float) -> SlidePlaces | str:
        """The places, or the reason why there is none."""
        row, tissue = self._catalogue.row(slide_id), self._catalogue.mask(slide_id)
        edge = level0_px(self._size_px, mpp=mpp, slide_mpp=row.mpp)
        try:
            places = find_places(
                tissue.mask,
                slide_size=(row.width, row.height),
                per_mask_px=level0_px(1, mpp=tissue.mpp, slide_mpp=row.mpp),
                edge=edge,
                min_tissue=self._min_tissue,
                margin=edge * (self._largest_view - 1) / 2,
            )
        except ValueError as error:  # this slide's mask does not fit; others may
            return str(error)
        if places.n_places == 0:
            return f"no place holds {self._min_tissue:g} tissue"
        return SlidePlaces(slide_id, places, self._shape(row, mpp=mpp, edge=edge))

    def _shape(self, row: SlideRow, *, mpp: float, edge: float) -> RegionShape:
        levels = [Level(row.width, row.height, downsample) for downsample in row.level_downsamples]
        level = choose_level(levels, slide_mpp=row.mpp, target_mpp=mpp)
        return RegionShape(
            n_tiles=self._tiles_per_region,
            edge=edge,
            downsample=levels[level].downsample,
            native=Size(row.level_tile_width[level], row.level_tile_height[level]),
        )

    def _keep(self, key: tuple[str, float], found: SlidePlaces) -> None:
        with self._lock:
            if key not in self._found:
                self._n_bytes += found.places.n_bytes + ENTRY_BYTES
            self._found[key] = found
            while self._n_bytes > self._max_bytes and len(self._found) > 1:
                _, dropped = self._found.popitem(last=False)
                self._n_bytes -= dropped.places.n_bytes + ENTRY_BYTES

    def _note(self, slide_id: str, mpp: float, reason: str) -> None:
        with self._lock:
            is_new = slide_id not in self._noted
            self._noted.add(slide_id)
            if len(self.unusable) < MOST_UNUSABLE:
                self.unusable[slide_id, mpp] = reason
        level = logging.WARNING if is_new else logging.DEBUG
        LOGGER.log(level, "%s: no tiles at %g mpp: %s", slide_id, mpp, reason)
