"""Embed every tissue tile of every slide of a catalogue: one bag a slide, resumable."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch

from anlage.bags.store import clear_half_written
from anlage.embedding.bag_target import BagTarget
from anlage.embedding.claims import Claims, claims_on
from anlage.embedding.embed_pass import EmbedPass
from anlage.embedding.embed_record import Embedded, record_of, write_embed_record
from anlage.embedding.settings import EmbedSettings, departures
from anlage.embedding.shard import Shard, shard_of
from anlage.embedding.slide_plan import Grid, grid_of, plan_slides
from anlage.encoders.open_encoder import open_encoder
from anlage.encoders.precision import Precision
from anlage.encoders.tile_encoder import TileEncoder
from anlage.slides.catalogue import Catalogue
from anlage.slides.colour import Colour
from anlage.slides.indexing.found_slide import Refused
from anlage.slides.storage.location import is_remote

LOGGER = logging.getLogger(__name__)
STALE_AFTER_S = 3600.0
Device = str | torch.device


@dataclass(frozen=True)
class EmbedResult:
    """What became of the slides; each is in exactly one list.

    Attributes:
        output: Folder of the bags, or a URL.
        done: Slides embedded by this run.
        skipped: Slides whose bag was there.
        empty: Slides without one tile of enough tissue; their bag, of this or an earlier run,
            holds 0 tiles.
        elsewhere: Slides that another run was embedding when this one ended.
        refused: Slides that could not be read or embedded, with the reason; they have no bag.
        n_tiles: Tiles embedded by this run.
        wait_s: Seconds the encoder waited for tiles.
        forward_s: Seconds the encoder took, over all devices.
        seconds: Seconds of the run, from the plan to the last bag.
    """

    output: str | Path
    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    n_tiles: int = 0
    wait_s: float = 0.0
    forward_s: float = 0.0
    seconds: float = 0.0


def embed_tiles(
    encoder: TileEncoder | str | Path,
    catalogue: Catalogue | str | Path,
    output: str | Path,
    *,
    mpp: float | None = None,
    tile_px: int | None = None,
    stride_px: int | None = None,
    overlap_px: int | None = None,
    min_tissue: float = 0.25,
    batch_size: int = 64,
    threads: int = 2,
    device: Device | Sequence[Device] = "auto",
    precision: Precision = "auto",
    colour: Colour | None = None,
    patch_tokens: bool = False,
    shard: Shard | None = None,
    trust_remote_code: bool = False,
) -> EmbedResult:
    """Embed all tiles with enough tissue, at the encoder's mpp and tile size unless told others.

    Writes ``<slide_id>.h5`` for each slide, whole, as soon as it is complete, and
    ``embedding.json`` at the end. A bag that is already there is kept if it is what this run
    would make, so the same command goes on after a stop of any kind; the record then tells of
    the runs before it too, and stays as it is where nothing was to do. Runs that are started in one
    folder at the same time share its slides between them.

    Args:
        encoder: An encoder, or what ``open_encoder`` takes: a folder, a preset's name, ...
        catalogue: The slides, or the catalogue's file.
        output: Folder of the bags (HDF5), or the URL of one in a bucket (Zarr).
        mpp: See ``EmbedSettings``, also for the next six. One that the encoder was not trained at
            is warned of, and told in the record.
        tile_px: As above.
        stride_px: As above.
        overlap_px: As above.
        min_tissue: As above.
        batch_size: As above.
        threads: As above.
        device: Where to run an encoder given by name; several share the tiles.
        precision: Its arithmetic; see ``TileEncoder``.
        colour: See ``EmbedSettings``, also for the next two.
        patch_tokens: As above.
        shard: As above.
        trust_remote_code: Let the encoder's repository run code of its own.

    Returns:
        Which slides are done, were skipped, are empty, or were refused and why.

    Raises:
        BagError: If ``output`` holds a bag of another encoder or grid, or a damaged one.
        EncoderError: If the encoder cannot be opened, or cannot take such tiles.
        CatalogueError: If the catalogue or its masks are unusable.
        OSError: If the disk is full or refuses; the finished bags stand.
        ValueError: If a setting is out of range.
    """
    settings = EmbedSettings(
        mpp=mpp,
        tile_px=tile_px,
        stride_px=stride_px,
        overlap_px=overlap_px,
        min_tissue=min_tissue,
        batch_size=batch_size,
        threads=threads,
        colour=colour,
        patch_tokens=patch_tokens,
        shard=shard,
    )
    how = OpenEncoder(device, precision, trust_remote_code)
    outputs = {"": output}
    return embed_together({"": encoder}, catalogue, outputs, settings=settings, how=how)[""]


@dataclass(frozen=True, slots=True)
class OpenEncoder:
    """How encoders that are given by name are opened.

    Attributes:
        device: Where they run; several share the tiles.
        precision: Their arithmetic.
        trust_remote_code: Whether a repository may run code of its own.
    """

    device: Device | Sequence[Device] = "auto"
    precision: Precision = "auto"
    trust_remote_code: bool = False

    def replicas(self, encoder: TileEncoder | str | Path) -> tuple[TileEncoder, ...]:
        """The encoder once a device; one that is open stays where it is."""
        if isinstance(self.device, str | torch.device):
            devices: tuple[Device, ...] = (self.device,)
        else:
            devices = tuple(self.device)
        if isinstance(encoder, TileEncoder):
            if len(devices) > 1:
                msg = (
                    f"embed_tiles: needs an encoder's name to open it on each of {devices}; got an "
                    "open one. Name its folder or preset."
                )
                raise ValueError(msg)
            return (encoder,)
        opened = tuple(
            open_encoder(
                encoder,
                device=device,
                precision=self.precision,
                trust_remote_code=self.trust_remote_code,
            )
            for device in devices
        )
        if len({each.precision for each in opened}) > 1:
            msg = (
                "embed_tiles: needs devices of one arithmetic, or a bag would mix them; got "
                f"{', '.join(f'{each.device} {each.precision}' for each in opened)}. "
                "Name a --precision that all have."
            )
            raise ValueError(msg)
        return opened


def embed_together(
    encoders: Mapping[str, TileEncoder | str | Path],
    catalogue: Catalogue | str | Path,
    outputs: Mapping[str, str | Path],
    *,
    settings: EmbedSettings | None = None,
    how: OpenEncoder | None = None,
) -> dict[str, EmbedResult]:
    """Embed with several encoders; those that want the same tiles see each tile of one reading.

    Encoders of another tile size, resolution or colour take a pass of their own over the slides,
    one after the other, so that each gets exactly the pixels it would get alone.

    Args:
        encoders: By name, each as ``embed_tiles`` takes it.
        catalogue: The slides, or the catalogue's file.
        outputs: By the same names, the folders or URLs of their bags, no two the same.
        settings: The grid and the batch.
        how: How encoders given by name are opened.

    Returns:
        As ``embed_tiles``, by name.

    Raises:
        AnlageError: As ``embed_tiles``; also OSError and ValueError.
    """
    settings, how = settings or EmbedSettings(), how or OpenEncoder()
    whole = catalogue if isinstance(catalogue, Catalogue) else Catalogue.open(catalogue)
    part = whole if settings.shard is None else shard_of(whole, settings.shard)
    opened = {name: how.replicas(encoder) for name, encoder in encoders.items()}
    with ExitStack() as stack:
        targets = []
        for name, replicas in opened.items():
            claims = claims_on(outputs[name])
            stack.enter_context(claims)
            targets.append(_target(name, replicas, outputs[name], settings, claims))
        results: dict[str, EmbedResult] = {}
        for together in _of_one_grid(targets):
            if len(targets) > 1:
                LOGGER.info("one pass over the slides for %s", ", ".join(t.name for t in together))
            results |= _one_pass(together, whole, part, settings)
    return {name: results[name] for name in encoders}


def _target(  # noqa: PLR0917 - private, each is a different thing
    name: str,
    replicas: Sequence[TileEncoder],
    output: str | Path,
    settings: EmbedSettings,
    claims: Claims,
) -> BagTarget:
    config = replicas[0].config
    grid = grid_of(settings, config)
    for departure in departures(config, grid.spec, grid.colour):
        LOGGER.warning("%s%s", f"{name}: " if name else "", departure)
    return BagTarget(
        name=name,
        replicas=replicas,
        output=output,
        grid=grid,
        with_tokens=settings.patch_tokens,
        claims=claims,
    )


def _of_one_grid(targets: Sequence[BagTarget]) -> list[list[BagTarget]]:
    by_grid: dict[Grid, list[BagTarget]] = {}
    for target in targets:
        by_grid.setdefault(target.grid, []).append(target)
    return list(by_grid.values())


def _one_pass(
    targets: Sequence[BagTarget], whole: Catalogue, part: Catalogue, settings: EmbedSettings
) -> dict[str, EmbedResult]:
    began, started = time.monotonic(), datetime.now(UTC)
    for target in targets:
        clear_stale_parts(target.output)
        target.plan = plan_slides(
            part,
            target.output,
            encoder=target.encoder,
            grid=target.grid,
            with_tokens=target.with_tokens,
        )
        target.refused += target.plan.refused
    run = EmbedPass(part, targets, batch_size=settings.batch_size, threads=settings.threads)
    run.run()
    seconds = round(time.monotonic() - began, 2)
    took = {
        "started": started.isoformat(timespec="seconds"),
        "seconds": seconds,
        "wait_s": round(run.wait_s, 2),
        "forward_s": round(run.forward_s, 2),
    }
    for target in targets:
        skipped = sorted([*target.plan.skipped, *target.plan.empty])
        record = record_of(target, whole, settings, skipped=skipped) | took
        write_embed_record(target, record, whole=whole, part=part)
    times = {"wait_s": run.wait_s, "forward_s": run.forward_s, "seconds": seconds}
    return {target.name: result_of(target, **times) for target in targets}


def result_of(target: Embedded, *, wait_s: float, forward_s: float, seconds: float) -> EmbedResult:
    """What became of the slides of one target, here or on other machines."""
    return EmbedResult(
        output=target.output,
        done=target.done,
        skipped=target.plan.skipped,
        empty=[*target.plan.empty, *target.empty],
        elsewhere=target.elsewhere,
        refused=target.refused,
        n_tiles=target.n_tiles,
        wait_s=round(wait_s, 2),
        forward_s=round(forward_s, 2),
        seconds=round(seconds, 2),
    )


def clear_stale_parts(output: str | Path) -> None:
    """Remove what a killed run left, but not what another run is writing now."""
    if is_remote(str(output)):  # where nothing is written beside
        return
    clear_half_written(output, older_than_s=STALE_AFTER_S)
    for part in Path(output).glob(".*.npy.*.part"):
        with suppress(FileNotFoundError):  # another run finished it meanwhile
            if time.time() - part.stat().st_mtime > STALE_AFTER_S:
                part.unlink()
