"""The bags that a slide encoder or a slide model learns from: of one encoder, known beforehand.

Shape suffixes: L tiles of the slide, D embedding width.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anlage.bags.bag import BagAttributes
from anlage.bags.bag_facts import BagFacts, bag_facts
from anlage.bags.one_encoder import refuse_mixed
from anlage.bags.store import list_bags, read_bag
from anlage.errors import BagError
from anlage.slides.storage.location import is_remote

LOGGER = logging.getLogger(__name__)
MAX_TILES = 1_000_000  # of a bag; larger ones are refused
REMOTE_THREADS = 16
ROWS_AT_ONCE = 128  # their bits stay in the cache of a core
WITHOUT_SIGN, INFINITY = np.uint16(0x7FFF), 0x7C00  # bits of float16; those of NaN come after it


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

    @property
    def n_bytes(self) -> int:
        """Bytes of its arrays."""
        return self.features_LD.nbytes + self.corner_L2.nbytes


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
        crowded: Tiles of a slide whose corner, or cell of the grid if one was given, another has
            already: they overlap, or came twice. They are kept. Slides with none are not here.
    """

    folder: str
    slide_ids: tuple[str, ...]
    n_tiles: tuple[int, ...]
    width: int
    attributes: BagAttributes
    refused: tuple[BagError, ...]
    empty: tuple[str, ...]
    missing: tuple[str, ...]
    crowded: Mapping[str, int]
    facts: Mapping[str, BagFacts] = field(repr=False)

    @classmethod
    def open(
        cls,
        bags: str | Path,
        *,
        slide_ids: Sequence[str] | None = None,
        width: int | None = None,
        grid_um: float | None = None,
    ) -> BagSet:
        """Read the headers of bags and keep those that can be used; the others are logged.

        Args:
            bags: Folder or URL of bags, all of one encoder.
            slide_ids: The slides to take; None for all.
            width: Embedding width that the bags need to have; None for that of the first.
            grid_um: Edge of a cell of the slide encoder's grid, micrometres, for ``crowded``.

        Raises:
            BagError: If there is no such folder, a slide has two bags, bags are of several encoders
                or widths, or none can be used.
        """
        places = list_bags(bags)
        wanted = list(places) if slide_ids is None else list(dict.fromkeys(slide_ids))
        missing = tuple(slide_id for slide_id in wanted if slide_id not in places)
        pairs = [(places[slide_id], slide_id) for slide_id in wanted if slide_id in places]
        read = partial(_facts_or_error, max_tiles=MAX_TILES, grid_um=grid_um)
        with ThreadPoolExecutor(REMOTE_THREADS if is_remote(str(bags)) else 1) as threads:
            found = list(threads.map(read, pairs))
        refused = tuple(facts for facts in found if isinstance(facts, BagError))
        known = [facts for facts in found if not isinstance(facts, BagError)]
        usable = [facts for facts in known if facts.n_tiles]
        empty = tuple(facts.slide_id for facts in known if not facts.n_tiles)
        _log_left_out(str(bags), refused, empty, missing)
        if not usable:
            raise BagError(bags, _nothing(refused, empty, missing, list(places)))
        _refuse_unlike(usable, usable[0].width if width is None else width)
        _log_crowded(str(bags), usable, grid_um)
        return _of_facts(str(bags), usable, refused, empty=empty, missing=missing)

    def __len__(self) -> int:
        return len(self.slide_ids)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over slides and content of the bags, whatever their order and place."""
        lines = sorted(f"{s}\t{facts.content_sha256}" for s, facts in self.facts.items())
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def without(self, refused: Sequence[BagError]) -> BagSet:
        """The set without bags that turned out to be unusable, which join ``refused``.

        Raises:
            BagError: If none is left.
        """
        bad = {error.path for error in refused}
        usable = [facts for facts in self.facts.values() if facts.place not in bad]
        refused = (*self.refused, *refused)
        if not usable:
            raise BagError(self.folder, _nothing(refused, self.empty, self.missing, ()))
        return _of_facts(self.folder, usable, refused, empty=self.empty, missing=self.missing)

    def refuse_unknown(self, slide_ids: Iterable[str]) -> None:
        """Refuse slides that are not in the set.

        Raises:
            ValueError: If there is one.
        """
        unknown = [slide_id for slide_id in slide_ids if slide_id not in self.facts]
        if unknown:
            msg = (
                f"BagSet: needs slides among its {len(self)}; got {_some(unknown)}. "
                "See its refused, empty and missing ones."
            )
            raise ValueError(msg)

    def read(self, slide_id: str, *, verify: bool = True) -> LoadedBag:
        """Read one bag.

        Args:
            slide_id: The slide.
            verify: Compare the checksum and look for NaN; what the bag states of itself is always
                compared with what it stated when the set was opened.

        Raises:
            BagError: If it is damaged, was replaced meanwhile, or holds NaN or an infinity.
            ValueError: If the set has no such slide.
        """
        self.refuse_unknown([slide_id])
        facts = self.facts[slide_id]
        bag = read_bag(facts.place, verify=verify, sha256=facts.content_sha256)
        if verify:
            _refuse_not_finite(facts.place, bag.features)
        features_LD = torch.from_numpy(bag.features)
        made = bag.attributes
        return LoadedBag(slide_id, features_LD, bag.coords, made.slide_mpp, made)


def _facts_or_error(
    pair: tuple[str, str], *, max_tiles: int, grid_um: float | None
) -> BagFacts | BagError:
    try:
        return bag_facts(*pair, max_tiles=max_tiles, grid_um=grid_um)
    except BagError as error:
        return error


def _of_facts(
    folder: str,
    usable: Sequence[BagFacts],
    refused: Sequence[BagError],
    *,
    empty: tuple[str, ...],
    missing: tuple[str, ...],
) -> BagSet:
    return BagSet(
        folder=folder,
        slide_ids=tuple(facts.slide_id for facts in usable),
        n_tiles=tuple(facts.n_tiles for facts in usable),
        width=usable[0].width,
        attributes=usable[0].attributes,
        refused=tuple(refused),
        empty=empty,
        missing=missing,
        crowded={facts.slide_id: facts.n_crowded for facts in usable if facts.n_crowded},
        facts={facts.slide_id: facts for facts in usable},
    )


def _refuse_unlike(usable: Sequence[BagFacts], width: int) -> None:
    first = usable[0]
    for facts in usable:
        refuse_mixed(facts.place, facts.attributes, first.place, first.attributes)
        if facts.width != width:
            msg = f"needs embeddings of width {width}; got {facts.width}. Embed the slide again."
            raise BagError(facts.place, msg)


def _refuse_not_finite(place: str, features_LD: NDArray[np.float16]) -> None:
    for first in range(0, len(features_LD), ROWS_AT_ONCE):
        bits = features_LD[first : first + ROWS_AT_ONCE].view(np.uint16) & WITHOUT_SIGN
        if bits.max(initial=0) >= INFINITY:
            tile = first + int(np.argmax((bits >= INFINITY).any(axis=1)))
            msg = f"holds NaN or an infinity in tile {tile}. Delete it and embed the slide again."
            raise BagError(place, msg)


def _log_left_out(
    bags: str, refused: Sequence[BagError], empty: Sequence[str], missing: Sequence[str]
) -> None:
    for error in refused:
        LOGGER.warning("left out: %s", error)
    for slide_ids, what in ((empty, "a bag without a tile"), (missing, "no bag")):
        if slide_ids:
            LOGGER.warning("%s: %s: %s", bags, _slides(len(slide_ids), what), _some(slide_ids))


def _log_crowded(bags: str, usable: Sequence[BagFacts], grid_um: float | None) -> None:
    crowded = [facts for facts in usable if facts.n_crowded]
    if crowded:
        n_tiles = sum(facts.n_crowded for facts in crowded)
        shared = "corner" if grid_um is None else f"{grid_um:g} um cell"
        what = f"{n_tiles:,} tiles in the {shared} of another, kept: overlapping or there twice"
        slides = _slides(len(crowded), what)
        LOGGER.warning("%s: %s: %s", bags, slides, _some([facts.slide_id for facts in crowded]))


def _slides(count: int, what: str) -> str:
    return f"{count:,} slide has {what}" if count == 1 else f"{count:,} slides have {what}"


def _some(names: Sequence[Any]) -> str:
    shown = ", ".join(str(name) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5:,} more"


def _nothing(
    refused: Sequence[BagError], empty: Sequence[str], missing: Sequence[str], there: Sequence[str]
) -> str:
    first = f" (the first: {refused[0]})" if refused else ""
    if missing and there and not refused and not empty:
        return (
            f"holds no bag of the {len(missing)} slides asked for, such as {missing[0]!r}; its "
            f"bags are named like {there[0]!r}. Write slide_ids as the bags have them."
        )
    return (
        f"holds no bag that can be used: {len(refused)} refused{first}, {len(empty)} without a "
        f"tile, {len(missing)} missing. Run `embed tiles` first."
    )
