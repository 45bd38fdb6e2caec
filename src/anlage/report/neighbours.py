"""Nearest neighbours: tiles that the encoder finds alike, always on another slide."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anlage.bags.store import Bag, read_bag
from anlage.errors import AnlageError, BagError
from anlage.probes.neighbours.nearest import nearest
from anlage.report.contents import Contents
from anlage.report.pictures import jpeg_uri
from anlage.slides.catalogue import Catalogue
from anlage.slides.levels import read_tile

LOGGER = logging.getLogger(__name__)
N_QUERIES, N_NEIGHBOURS = 6, 6
MOST_SLIDES, MOST_TILES = 64, 50_000
TILE_QUALITY = 88


@dataclass(frozen=True, kw_only=True)
class ShownTile:
    """One tile.

    Attributes:
        picture: Data URI; None if its slide cannot be read.
        slide_id: Its slide.
        organ: Of the slide, if known.
        similarity: Cosine to the query; None for the query itself.
        is_same_organ: Whether the organ is the query's; None where one is not known.
    """

    picture: str | None
    slide_id: str
    organ: str
    similarity: float | None = None
    is_same_organ: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Query:
    """A tile and its nearest tiles on other slides, nearest first."""

    tile: ShownTile
    neighbours: tuple[ShownTile, ...]


@dataclass(frozen=True, kw_only=True)
class NeighboursSection:
    """Queries, and how much they were looked for in.

    Attributes:
        queries: One a slide, organs as different as they come.
        n_tiles: Tiles searched.
        n_slides: Slides they lie on.
        tile_um: Edge of a tile, micrometres.
    """

    queries: tuple[Query, ...]
    n_tiles: int
    n_slides: int
    tile_um: float


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pool:
    """Tiles of all bags: (M, D) features less their mean, (M,) slide number, (M, 2) corners."""

    features: NDArray[np.float32]
    slide: NDArray[np.int64]
    corners: NDArray[np.int64]
    bags: Sequence[Bag]


def neighbours_section(contents: Contents, *, seed: int) -> NeighboursSection | None:
    """Queries with their neighbours; None without bags of two slides in the catalogue."""
    if contents.catalogue is None or not contents.bags:
        return None
    generator = np.random.default_rng(seed)
    bags = _bags(contents, contents.catalogue)
    if len(bags) < 2:
        return None
    pool = _pool(bags, generator)
    show = _Shower(contents.catalogue, pool)
    queries = tuple(
        _query(pool, int(row), show) for row in _chosen(pool, contents.catalogue, generator)
    )
    attributes = bags[0].attributes
    return NeighboursSection(
        queries=queries,
        n_tiles=len(pool.features),
        n_slides=len(bags),
        tile_um=attributes.tile_px * attributes.mpp,
    )


def _bags(contents: Contents, catalogue: Catalogue) -> list[Bag]:
    """Undamaged bags with tiles, of the catalogue's slides, all of one encoder."""
    known = set(catalogue.column("slide_id").to_pylist())
    bags: list[Bag] = []
    encoder = contents.encoder.fingerprint if contents.encoder else None
    for path in contents.bags.values():
        try:
            bag = read_bag(path)
        except BagError as error:
            LOGGER.warning("%s", error)
            continue
        encoder = encoder or bag.attributes.encoder_fingerprint
        is_ours = bag.attributes.encoder_fingerprint == encoder and bag.slide_id in known
        if is_ours and len(bag.coords):
            bags.append(bag)
        if len(bags) == MOST_SLIDES:
            break
    return bags


def _pool(bags: Sequence[Bag], generator: np.random.Generator) -> _Pool:
    most = MOST_TILES // len(bags)
    rows = [
        np.arange(len(bag.coords))
        if len(bag.coords) <= most
        else np.sort(generator.choice(len(bag.coords), most, replace=False))
        for bag in bags
    ]
    features = np.concatenate(
        [bag.features[kept].astype(np.float32) for bag, kept in zip(bags, rows, strict=True)]
    )
    return _Pool(
        features=features - features.mean(axis=0),
        slide=np.concatenate([np.full(len(kept), i) for i, kept in enumerate(rows)]),
        corners=np.concatenate([bag.coords[kept] for bag, kept in zip(bags, rows, strict=True)]),
        bags=bags,
    )


def _chosen(pool: _Pool, catalogue: Catalogue, generator: np.random.Generator) -> list[np.int64]:
    """One tile of each of six slides; a slide of an organ not shown yet goes first."""
    organ = [catalogue.row(bag.slide_id).tissue for bag in pool.bags]
    order = generator.permutation(len(pool.bags)).tolist()
    shown: dict[str | None, int] = {}
    turn = {}
    for slide in order:
        turn[slide] = shown.get(organ[slide], 0)
        shown[organ[slide]] = turn[slide] + 1
    first = sorted(order, key=lambda slide: turn[slide])[:N_QUERIES]
    return [generator.choice(np.flatnonzero(pool.slide == slide)) for slide in first]


def _query(pool: _Pool, row: int, show: _Shower) -> Query:
    elsewhere = np.flatnonzero(pool.slide != pool.slide[row])
    k = min(N_NEIGHBOURS, len(elsewhere))
    index_QK, similarity_QK = nearest(pool.features[[row]], pool.features[elsewhere], k=k)
    found = zip(elsewhere[index_QK[0]].tolist(), similarity_QK[0].tolist(), strict=True)
    tile = show.tile(row)
    return Query(
        tile=tile,
        neighbours=tuple(show.tile(r, similarity=s, query=tile) for r, s in found),
    )


class _Shower:
    """Reads the pixels of pooled tiles."""

    def __init__(self, catalogue: Catalogue, pool: _Pool) -> None:
        self._catalogue, self._pool = catalogue, pool

    def tile(
        self, row: int, *, similarity: float | None = None, query: ShownTile | None = None
    ) -> ShownTile:
        bag = self._pool.bags[self._pool.slide[row]]
        organ = (self._catalogue.row(bag.slide_id).tissue or "").replace("_", " ")
        is_known = query is not None and bool(organ) and bool(query.organ)
        return ShownTile(
            picture=self._picture(bag, row),
            slide_id=bag.slide_id,
            organ=organ,
            similarity=similarity,
            is_same_organ=organ == query.organ if query is not None and is_known else None,
        )

    def _picture(self, bag: Bag, row: int) -> str | None:
        x, y = self._pool.corners[row].tolist()
        made = bag.attributes
        try:
            with self._catalogue.open_slide(bag.slide_id) as slide:
                pixels = read_tile(slide, x, y, size_px=made.tile_px, mpp=made.mpp)
        except AnlageError as error:
            LOGGER.warning("%s", error)
            return None
        return jpeg_uri(pixels, quality=TILE_QUALITY)
