"""A pool of tiles: the bags of a folder as one array, with where each tile lies.

Shape suffixes: N tiles of the pool, L tiles of a bag, D embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from anlage.bags.bag import BagAttributes, BagHeader
from anlage.bags.one_encoder import refuse_mixed
from anlage.bags.store import feature_blocks, list_bags, read_bag_header
from anlage.errors import BagError
from anlage.progress import meter

Integers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TilePool:
    """Tiles of many slides with their embeddings.

    Attributes:
        slide_ids: The slides with tiles, sorted.
        slide_N: (N,) int64 the slide of each tile, an index into ``slide_ids``; rising.
        corner_N2: (N, 2) int64 upper-left corners (x, y), level-0 pixels.
        feature_ND: (N, D) float16.
        made: What the first bag was made from: encoder, resolution and edge of all.
        bag_sha256: Content of each slide's bag, in the order of ``slide_ids``.
        empty: Slides whose bag holds no tile.
        n_doubled: Tiles left out since a tile of the same place came before.
        refused: Bags left out, with the reason.
    """

    slide_ids: tuple[str, ...]
    slide_N: Integers
    corner_N2: Integers
    feature_ND: NDArray[np.float16]
    made: BagAttributes
    bag_sha256: tuple[str, ...]
    empty: tuple[str, ...] = ()
    n_doubled: int = 0
    refused: tuple[BagError, ...] = ()

    def __len__(self) -> int:
        return len(self.slide_N)

    def at(self, rows: Integers) -> TilePool:
        """The pool of some rows, ascending; slides without tiles stay named."""
        return replace(
            self,
            slide_N=self.slide_N[rows],
            corner_N2=self.corner_N2[rows],
            feature_ND=self.feature_ND[rows],
        )


def read_pool(
    folder: str,
    *,
    slides: Mapping[str, str] | None = None,
    only: AbstractSet[str] | None = None,
) -> TilePool:
    """Read the bags of a folder or URL as one pool, in the order of slide_ids.

    A bag that is damaged, holds a NaN, or is of a slide that is not known or was made from another
    file, is left out and named. Headers are read first, so that memory is one array of float16.

    Args:
        folder: Folder or URL of bags.
        slides: Fingerprint of each slide of the catalogue, by slide_id; None to take any.
        only: Slides whose bags are taken; others of the catalogue are passed over. None for all.

    Raises:
        BagError: If there are no bags or no tiles, or bags are of several encoders or resolutions.
    """
    places = list_bags(folder)
    if not places:
        raise BagError(folder, "holds no bags. Run `embed tiles` first.")
    if only is not None:
        known = slides or {}
        places = {
            name: place for name, place in places.items() if name in only or name not in known
        }
    headers, refused = _headers(places, slides)
    kept = {name: header for name, header in headers.items() if len(header.coords)}
    if not kept:
        told = f"; the first: {refused[0]}" if refused else ""
        msg = f"holds no tile that can be used ({len(places)} bags{told}). "
        raise BagError(folder, f"{msg}Run `embed tiles` on slides with tissue.")
    made = next(iter(kept.values())).attributes
    n_tiles = sum(len(header.coords) for header in kept.values())
    width = next(iter(kept.values())).width
    feature_ND = np.empty((n_tiles, width), dtype=np.float16)
    taken: list[tuple[str, BagHeader, Integers]] = []
    end = n_doubled = 0
    with meter("read bags", total=len(kept), unit="bags") as progress:
        for name, header in kept.items():
            try:
                rows = _fill(feature_ND[end : end + len(header.coords)], places[name])
            except BagError as error:
                refused.append(error)
            else:
                taken.append((name, header, rows))
                end += len(rows)
                n_doubled += len(header.coords) - len(rows)
            progress.advance()
    if not end:
        raise BagError(folder, f"holds no bag that can be used; the first: {refused[0]}")
    return TilePool(
        slide_ids=tuple(name for name, _, _ in taken),
        slide_N=np.repeat(np.arange(len(taken)), [len(rows) for _, _, rows in taken]),
        corner_N2=np.concatenate([header.coords[rows] for _, header, rows in taken]),
        feature_ND=feature_ND[:end],
        made=made,
        bag_sha256=tuple(header.content_sha256 for _, header, _ in taken),
        empty=tuple(name for name in headers if name not in kept),
        n_doubled=n_doubled,
        refused=tuple(refused),
    )


def refuse_other_encoder(pool: TilePool, pool_place: str, other: TilePool, place: str) -> None:
    """Refuse two pools whose embeddings cannot be compared.

    Raises:
        BagError: If they are of several encoders, resolutions, edges or colours.
    """
    refuse_mixed(place, other.made, pool_place, pool.made)


def _headers(
    places: Mapping[str, str], slides: Mapping[str, str] | None
) -> tuple[dict[str, BagHeader], list[BagError]]:
    headers: dict[str, BagHeader] = {}
    refused: list[BagError] = []
    first: tuple[str, BagHeader] | None = None
    for name, place in places.items():
        try:
            header = read_bag_header(place)
            _refuse_unknown_slide(place, name, header, slides)
        except BagError as error:
            refused.append(error)
            continue
        first = first or (place, header)
        refuse_mixed(place, header.attributes, first[0], first[1].attributes)
        if header.width != first[1].width:
            msg = f"is {header.width} wide; {first[0]} is {first[1].width}. Embed both alike."
            raise BagError(place, msg)
        headers[name] = header
    return headers, refused


def _refuse_unknown_slide(
    place: str, name: str, header: BagHeader, slides: Mapping[str, str] | None
) -> None:
    if slides is None:
        return
    if name not in slides:
        msg = f"slide {name!r} is not in the catalogue. Index it, or take the bag away."
        raise BagError(place, msg)
    if header.attributes.slide_fingerprint != slides[name]:
        msg = f"was made from another file than the catalogue's {name!r}. Embed the slide again."
        raise BagError(place, msg)


def _fill(into_LD: NDArray[np.float16], place: str) -> Integers:
    """Read a bag's features, each place once; rows of the bag that were taken, (n,) ascending."""
    header, blocks = feature_blocks(place)
    _, first = np.unique(header.coords, axis=0, return_index=True)
    is_first = np.zeros(len(header.coords), dtype=np.bool_)
    is_first[first] = True
    start = end = 0
    for block in blocks:
        if not np.isfinite(block).all():
            raise BagError(place, "holds NaN or an infinity. Delete it and embed the slide again.")
        chosen = block[is_first[start : start + len(block)]]
        into_LD[end : end + len(chosen)] = chosen
        start, end = start + len(block), end + len(chosen)
    return np.flatnonzero(is_first)
