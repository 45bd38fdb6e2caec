"""The bags that a slide encoder or a slide model learns from: one encoder, known beforehand.

Shape suffixes: L tiles of the slide, D embedding width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anlage.bags.bag import BagAttributes, BagHeader
from anlage.bags.one_encoder import refuse_mixed
from anlage.bags.store import list_bags, read_bag, read_bag_header
from anlage.errors import BagError

MAX_TILES = 1_000_000


@dataclass(frozen=True, slots=True, eq=False)
class LoadedBag:
    """A bag in memory, as it is stored.

    Attributes:
        slide_id: The slide.
        features_LD: (L, D) float16 tile embeddings, all finite; L is at least 1.
        corner_L2: (L, 2) int64 corners (x, y), level-0 pixels.
        slide_mpp: Resolution of level 0, micrometres per pixel.
        attributes: What the bag was made from.
    """

    slide_id: str
    features_LD: Tensor
    corner_L2: NDArray[np.int64]
    slide_mpp: float
    attributes: BagAttributes


@dataclass(frozen=True, slots=True, eq=False)
class BagSet:
    """The bags of a folder or URL that can be used together, known by their headers.

    Attributes:
        folder: Folder or URL of the bags.
        slide_ids: Slides with a bag that can be used, sorted, or in the order asked for.
        n_tiles: Tiles of each.
        width: Embedding width D of all.
        attributes: What the first was made from; encoder, resolution, tile edge and colour are
            those of all.
        refused: Bags that cannot be used, with the reason; left out.
        empty: Slides whose bag holds no tile; left out.
        missing: Slides that were asked for and have no bag.
    """

    folder: str
    slide_ids: tuple[str, ...]
    n_tiles: tuple[int, ...]
    width: int
    attributes: BagAttributes
    places: dict[str, str] = field(repr=False)
    sha256_of: dict[str, str] = field(repr=False)
    refused: list[BagError] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @classmethod
    def open(
        cls,
        bags: str | Path,
        *,
        slide_ids: Sequence[str] | None = None,
        max_tiles: int = MAX_TILES,
        width: int | None = None,
    ) -> BagSet:
        """Read the headers of bags and keep those that can be used.

        Args:
            bags: Folder or URL of bags, all of one encoder.
            slide_ids: The slides to take; None for all.
            max_tiles: Most tiles of a bag; larger ones are refused.
            width: Embedding width that the bags need to have; None for that of the first.

        Raises:
            BagError: If there is no such folder, a slide has two bags, bags are of several encoders
                or widths, or none can be used.
        """
        places = list_bags(bags)
        wanted = list(places) if slide_ids is None else list(dict.fromkeys(slide_ids))
        missing = [slide_id for slide_id in wanted if slide_id not in places]
        kept: dict[str, BagHeader] = {}
        refused: list[BagError] = []
        empty: list[str] = []
        for slide_id in (name for name in wanted if name in places):
            try:
                header = _checked_header(places[slide_id], slide_id, max_tiles)
            except BagError as error:
                refused.append(error)
                continue
            if len(header.coords):
                kept[slide_id] = header
            else:
                empty.append(slide_id)
        if not kept:
            raise BagError(bags, _nothing(refused, empty, missing))
        first_id, first = next(iter(kept.items()))
        width = first.width if width is None else width
        for slide_id, header in kept.items():
            place = places[slide_id]
            refuse_mixed(place, header.attributes, places[first_id], first.attributes)
            if header.width != width:
                msg = f"needs embeddings of width {width}; got {header.width}. Embed it again."
                raise BagError(place, msg)
        return cls(
            folder=str(bags),
            slide_ids=tuple(kept),
            n_tiles=tuple(len(header.coords) for header in kept.values()),
            width=width,
            attributes=first.attributes,
            places={slide_id: places[slide_id] for slide_id in kept},
            sha256_of={slide_id: header.content_sha256 for slide_id, header in kept.items()},
            refused=refused,
            empty=empty,
            missing=missing,
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 over slides and content of the bags, whatever their order and place."""
        lines = sorted(f"{slide_id}\t{digest}" for slide_id, digest in self.sha256_of.items())
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def read(self, slide_id: str) -> LoadedBag:
        """Read one bag.

        Raises:
            BagError: If it is damaged, or holds NaN or an infinity.
            ValueError: If the set has no such slide.
        """
        if slide_id not in self.places:
            msg = f"BagSet.read: needs one of its {len(self.slide_ids)} slides; got {slide_id!r}."
            raise ValueError(msg)
        place = self.places[slide_id]
        bag = read_bag(place)
        finite_L = np.isfinite(bag.features).all(axis=1)
        if not finite_L.all():
            tile = int(np.argmin(finite_L))
            msg = f"holds NaN or an infinity in tile {tile}. Delete it and embed the slide again."
            raise BagError(place, msg)
        return LoadedBag(
            slide_id,
            torch.from_numpy(bag.features),
            bag.coords,
            bag.attributes.slide_mpp,
            bag.attributes,
        )


def _checked_header(place: str, slide_id: str, max_tiles: int) -> BagHeader:
    header = read_bag_header(place)
    if header.slide_id != slide_id:
        raise BagError(place, f"is the bag of slide {header.slide_id!r}. Rename it.")
    if len(header.coords) > max_tiles:
        msg = f"needs at most {max_tiles:,} tiles; got {len(header.coords):,}. Leave it out."
        raise BagError(place, msg)
    if header.coords.size and header.coords.min() < 0:
        tile = int(np.argmin(header.coords.min(axis=1)))
        corner = tuple(header.coords[tile].tolist())
        msg = f"needs corners from 0; got {corner} of tile {tile}. Embed the slide again."
        raise BagError(place, msg)
    return header


def _nothing(refused: list[BagError], empty: list[str], missing: list[str]) -> str:
    first = f"; the first: {refused[0]}" if refused else ""
    return (
        f"holds no bag that can be used: {len(refused)} refused, {len(empty)} without a tile, "
        f"{len(missing)} missing{first}. Run `embed tiles` first."
    )
