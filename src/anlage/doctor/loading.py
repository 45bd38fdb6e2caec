"""Whether each machine of a job reads tiles as fast as its share of a training run needs."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence

from anlage.bench.io import measure_io
from anlage.bench.io_report import IoSettings
from anlage.distributed import Ranks
from anlage.doctor.findings import Finding, named
from anlage.errors import AnlageError


def loading(
    ranks: Ranks, slides: Sequence[str], settings: IoSettings, *, rate: float | None
) -> Iterator[Finding]:
    """Run every rank's loader at the same time, and add up what each machine reads.

    Args:
        ranks: All processes.
        slides: A catalogue, or slides, as ``anlage bench io`` takes them.
        settings: What each rank reads, with how many threads.
        rate: Tiles a second that the whole run needs; None to tell what comes.

    Yields:
        A finding for each machine; the same on every rank.
    """
    refused, found = "", 0.0
    ranks.objects(None)  # all begin together
    try:
        found = measure_io(slides, settings).loader_tiles_per_s
    except AnlageError as error:
        refused = str(error)
    told = ranks.objects((platform.node(), found, refused))
    for number, machine in enumerate(dict.fromkeys(place for place, _, _ in told)):
        here = [rank for rank, (place, _, _) in enumerate(told) if place == machine]
        failed = [told[rank][2] for rank in here if told[rank][2]]
        name = f"machine {number} ({named(here)})"
        if failed:
            yield Finding("loader", name, "broken", failed[0])
            continue
        reads = sum(told[rank][1] for rank in here)
        threads = f"{len(here)} x {settings.threads} threads"
        what = f"{reads:,.0f} tiles/s of {settings.tile_px} px at {settings.mpp:g} µm, {threads}"
        if rate is None:
            yield Finding("loader", name, "ok", what)
            continue
        needed = rate * len(here) / ranks.world_size
        if reads >= needed:
            yield Finding("loader", name, "ok", f"{what}; {needed:,.0f} needed")
        else:
            reason = f"{what}; {needed:,.0f} needed. More --threads, or tiles.per_region=4"
            yield Finding("loader", name, "broken", reason)
