"""What ``anlage bench io`` is asked, and what it tells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from anlage.provenance import machine, versions
from anlage.slides.levels import Decode

FORMAT = "bench-io/1"


@dataclass(frozen=True, kw_only=True, slots=True)
class IoSettings:
    """What is read, and how.

    Attributes:
        mpp: Resolution of the tiles, micrometres per pixel.
        tile_px: Their edge, pixels at ``mpp``.
        n: How many are read by one thread.
        threads: Threads of the loader.
        per_region: Tiles cut from one decoded region.
        decode: "scaled", or "full".
        rate: Tiles a second that a training step would take; None to leave that out.
        rounds: Rounds, of which the median is told.
    """

    mpp: float = 0.5
    tile_px: int = 256
    n: int = 400
    threads: int = 2
    per_region: int = 1
    decode: Decode = "scaled"
    rate: float | None = None
    rounds: int = 3


@dataclass(frozen=True, slots=True)
class Limit:
    """What the decoder alone does, on the same native tiles in the same run.

    Attributes:
        decoders: What decodes them.
        n_tiles: Tiles on slides whose native tiles are known.
        tiles_per_cpu_s: Such tiles a second of processor time, if decoding were all.
        share_reached: Processor time of that over the processor time of reading those tiles.
        native_tiles_per_tile: Native tiles decoded for one tile.
        bytes_per_tile: Bytes read for one tile.
    """

    decoders: list[str]
    n_tiles: int
    tiles_per_cpu_s: float
    share_reached: float
    native_tiles_per_tile: float
    bytes_per_tile: float


@dataclass(frozen=True, slots=True)
class Wait:
    """How the loader keeps up with a consumer.

    Attributes:
        rate: Tiles a second that it takes; None: all that it gets.
        first_batch_s: Seconds until the first batch was there.
        share: Share of the time after that in which it waited for tiles.
        tiles_per_s: Tiles a second that it got, from the start on.
    """

    rate: float | None
    first_batch_s: float
    share: float
    tiles_per_s: float


@dataclass(slots=True)
class IoReport:
    """What was measured.

    Attributes:
        settings: What was asked.
        n_slides: Slides that tiles were drawn from.
        n_tiles: Tiles read by one thread, each round.
        n_lost: Of these, tiles that could not be read.
        readers: Regions by the reader of their slide.
        tiles_per_s: Of one thread, wall clock.
        tiles_per_cpu_s: Of one thread, by all processor time of the process.
        limit: The decoder alone; None if no reader gives out its native tiles.
        loader_tiles_per_s: Of the whole loader, to uint8 batches, wall clock, its start included.
        wait: How it keeps up with ``settings.rate``.
        refused: Slides that could not be used, with the reason.
    """

    settings: IoSettings
    n_slides: int
    n_tiles: int
    n_lost: int
    readers: dict[str, int]
    tiles_per_s: float
    tiles_per_cpu_s: float
    limit: Limit | None
    loader_tiles_per_s: float = 0.0
    wait: Wait | None = None
    refused: list[tuple[str, str]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON can hold it, with the versions and the machine."""
        refused = [{"uri": uri, "reason": reason} for uri, reason in self.refused]
        record = asdict(self) | {"refused": refused}
        return {"format": FORMAT, **record, "versions": versions(), "machine": machine()}

    def as_lines(self) -> Iterator[str]:
        """A short table to be read."""
        asked = self.settings
        readers = ", ".join(sorted(self.readers))
        lost = f", {self.n_lost} of them lost" if self.n_lost else ""
        refused = f", {len(self.refused)} refused" if self.refused else ""
        yield _row("slides", f"{self.n_slides} by {readers}{refused}")
        yield _row(
            "tiles",
            f"{self.n_tiles} of {asked.tile_px} px at {asked.mpp:g} µm per pixel, "
            f"{asked.per_region} a region, {asked.decode} decode{lost}",
        )
        yield _row(
            "one thread",
            f"{self.tiles_per_s:,.0f} tiles/s; {self.tiles_per_cpu_s:,.0f} per CPU second",
        )
        yield from self._limit_lines()
        yield _row(f"{asked.threads} threads", f"{self.loader_tiles_per_s:,.0f} tiles/s in batches")
        if self.wait is not None:
            yield _row(
                f"at {self.wait.rate:g}/s",
                f"waits {self.wait.share:.1%} of the time, after {self.wait.first_batch_s:.2f} s "
                f"for the first batch",
            )

    def _limit_lines(self) -> Iterator[str]:
        if self.limit is None:
            yield _row("decoder", "not known: these readers do not give out their native tiles")
            return
        part = "" if self.limit.n_tiles == self.n_tiles else f" ({self.limit.n_tiles} tiles)"
        yield _row(
            "decoder alone",
            f"{self.limit.tiles_per_cpu_s:,.0f} per CPU second by "
            f"{', '.join(self.limit.decoders)}{part}",
        )
        yield _row("share of that", f"{self.limit.share_reached:.0%}")
        yield _row("native tiles", f"{self.limit.native_tiles_per_tile:.2f} decoded a tile")
        yield _row("bytes", f"{self.limit.bytes_per_tile / 1e3:,.1f} kB read a tile")


def _row(name: str, told: str) -> str:
    return f"{name:<14}{told}"
