"""Bags that are damaged or gone: found before a run's first step, and what goes on without them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from anlage.bags.loader import BagCache, BagSet
from anlage.distributed import ALONE, Ranks
from anlage.errors import BagError
from anlage.progress import meter

LOGGER = logging.getLogger(__name__)
WAS_LEFT_OUT = "was left out when the run began, and stays so. Start a new run folder to use it."


def whole_bags(cache: BagCache, *, threads: int, ranks: Ranks = ALONE) -> BagSet:
    """The bags that can be read, each of which is read once; ranks share the reading.

    Args:
        cache: The bags; it keeps what fits.
        threads: Threads of this rank that read.
        ranks: The processes that share the run; all call it.

    Returns:
        The set without bags that are damaged or hold NaN, which are in its ``refused``, and logged.

    Raises:
        BagError: If none is left.
    """
    bags = cache.bags
    own = bags.slide_ids[ranks.rank :: ranks.world_size]
    found: list[BagError] = []
    with (
        meter("read bags", total=len(own), unit="bags", is_shown=ranks.is_main) as shown,
        ThreadPoolExecutor(threads, thread_name_prefix="anlage-bags") as pool,
    ):
        for error in pool.map(lambda slide_id: _error_of(cache, slide_id), own):
            found += [] if error is None else [error]
            shown.advance()
    damaged = sorted((e for part in ranks.objects(found) for e in part), key=lambda e: e.path)
    for error in damaged:
        LOGGER.warning("left out: %s", error)
    return bags.without(damaged) if damaged else bags


def _error_of(cache: BagCache, slide_id: str) -> BagError | None:
    try:
        cache.take(slide_id)
    except BagError as error:
        return BagError(cache.bags.facts[slide_id].place, error.message)
    return None


def without_left_out(bags: BagSet, record: Mapping[str, Any]) -> BagSet:
    """The bags without those that a run left out at its beginning, whole as they may be now.

    Args:
        bags: Bags that there are.
        record: The run's ``run.json``; empty for a new run.

    Raises:
        BagError: If none is left.
    """
    left_out = set(record.get("left_out", ()))
    again = [facts.place for slide_id, facts in bags.facts.items() if slide_id in left_out]
    return bags.without([BagError(place, WAS_LEFT_OUT) for place in again]) if again else bags


def lost_since(bags: BagSet, record: Mapping[str, Any]) -> dict[str, str]:
    """The content hash of each bag that a run began with and that is not among these.

    Args:
        bags: Bags that can be read.
        record: The run's ``run.json``; empty for a new run.
    """
    parts = ("slides", "held_out", "other_slides")
    began = {slide: sha for part in parts for slide, sha in record.get(part, {}).items()}
    return {slide: sha for slide, sha in began.items() if slide not in bags.facts}


def left_out_of(bags: BagSet) -> list[str]:
    """Slides whose bag is there and cannot be used, sorted."""
    return sorted({*bags.empty, *(Path(error.path).stem for error in bags.refused)})
