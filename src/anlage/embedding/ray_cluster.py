"""Embed on the machines of a Ray cluster: who embeds what, and what if a worker dies."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from anlage.embedding.claims import Claims, claims_on
from anlage.embedding.embed_record import record_of, write_embed_record
from anlage.embedding.embed_tiles import EmbedResult, OpenEncoder, clear_stale_parts, result_of
from anlage.embedding.encoder_facts import EncoderFacts, token_shape
from anlage.embedding.ray_worker import GroupReport, RemoteWork
from anlage.embedding.ray_workers import Outcome, RayOptions, RayWorkers, connected
from anlage.embedding.settings import EmbedSettings, departures
from anlage.embedding.shard import shard_of
from anlage.embedding.slide_plan import (
    Grid,
    Plan,
    bag_attributes,
    bag_made_before,
    grid_of,
    plan_slides,
)
from anlage.embedding.slide_queue import SlideQueue
from anlage.encoders.bundled import BUNDLED
from anlage.encoders.presets import PRESETS
from anlage.errors import EncoderError
from anlage.progress import Meter, meter
from anlage.slides.catalogue import Catalogue
from anlage.slides.indexing.found_slide import Refused
from anlage.slides.storage.location import absolute, is_remote

LOGGER = logging.getLogger(__name__)
SEEN_FIRST = 8  # slides that a worker must see before it gets one


@dataclass(kw_only=True, eq=False)
class RayTarget:
    """What becomes of the slides in the hands of the workers; see ``BagTarget``.

    Attributes:
        output: Folder of the bags, or a URL.
        encoder: What the workers say of their encoder.
        grid: The tiles it gets.
        with_tokens: Whether patch tokens are written as well.
        claims: On the record of ``output``; the workers claim slides.
        plan: What is to be done.
        done: Slides embedded by this run.
        empty: Slides that this run found to have no tile.
        elsewhere: Slides that another run is embedding.
        refused: Slides without a bag, with the reason.
        n_tiles: Tiles embedded by this run.
        wait_s: Seconds in which encoders waited for tiles, over all workers.
        forward_s: Seconds the encoders took, over all workers.
        devices: Where they ran.
    """

    output: str | Path
    encoder: EncoderFacts
    grid: Grid
    with_tokens: bool
    claims: Claims
    plan: Plan
    done: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    n_tiles: int = 0
    wait_s: float = 0.0
    forward_s: float = 0.0
    devices: str = ""

    @property
    def times(self) -> dict[str, float]:
        """Seconds of waiting and of forward passes, over all workers."""
        return {"wait_s": self.wait_s, "forward_s": self.forward_s}

    @property
    def token_shape(self) -> tuple[int, int]:
        """(N, E) of a tile's patch tokens."""
        return token_shape(self.encoder, tile_px=self.grid.spec.size_px)

    def refuse(self, uri: str, reason: str) -> None:
        """Note a slide that gets no bag."""
        LOGGER.warning("%s: no bag: %s", uri, reason)
        self.refused.append(Refused(uri, reason))

    def take(self, report: GroupReport) -> None:
        """Note what a worker tells of its group."""
        self.done += report.done
        self.empty += report.empty
        self.plan.skipped.extend(report.skipped)
        self.elsewhere += report.elsewhere
        self.n_tiles += report.n_tiles
        self.wait_s += report.wait_s
        self.forward_s += report.forward_s
        for slide in report.refused:
            self.refuse(slide.uri, slide.reason)

    def take_whole_bags(self, catalogue: Catalogue, slide_ids: Sequence[str]) -> list[str]:
        """Note the bags that a worker had finished before it died; gives the other slides."""
        unfinished = []
        for slide_id in slide_ids:
            row = catalogue.row(slide_id)
            header = bag_made_before(
                self.output,
                bag_attributes(row, self.encoder, self.grid),
                catalogue,
                row,
                self.grid,
                with_tokens=self.with_tokens,
            )
            if header is None:
                unfinished.append(slide_id)
                continue
            (self.done if len(header.coords) else self.empty).append(slide_id)
            self.n_tiles += len(header.coords)
        return unfinished


def embed_on_ray(
    encoder: str | Path,
    catalogue: Catalogue | str | Path,
    output: str | Path,
    *,
    settings: EmbedSettings | None = None,
    how: OpenEncoder | None = None,
    options: RayOptions | None = None,
) -> EmbedResult:
    """Embed all slides of a catalogue as ``embed_tiles`` does, by workers on a Ray cluster.

    Each worker opens the encoder once, and slides itself, and writes bags; only names of slides and
    counts pass between it and this process, which writes ``embedding.json``. What a worker had
    not finished when it or its node was lost is given to another, a slide at a time; a slide whose
    worker died twice is refused. The same call goes on after a stop of any kind.

    Args:
        encoder: What ``open_encoder`` takes, as every worker can open it.
        catalogue: The slides, or the catalogue's file.
        output: Folder that all nodes share, or the URL of one in a bucket.
        settings: The grid and the batch.
        how: The worker's device (one), precision, and whether an encoder's repository may run code.
        options: Which cluster, and how much of it.

    Returns:
        As ``embed_tiles``; ``wait_s`` and ``forward_s`` are sums over the workers.

    Raises:
        DistributedError: If Ray is not installed, no cluster answers, a node does not see a file,
            has other versions or another encoder, or no worker is left.
        AnlageError: As ``embed_tiles``; also OSError and ValueError.
    """
    settings, how, options = (
        settings or EmbedSettings(),
        how or OpenEncoder(),
        options or RayOptions(),
    )
    whole = catalogue if isinstance(catalogue, Catalogue) else Catalogue.open(catalogue)
    part = whole if settings.shard is None else shard_of(whole, settings.shard)
    output, _ = absolute(output), _one_device(how)
    with claims_on(output) as claims, connected(options.address) as ray, _seen(output) as marker:
        clear_stale_parts(output)
        work = _work(encoder, whole, part, output, settings=settings, how=how, marker=marker)
        with RayWorkers(ray, work, options) as workers:
            facts = workers.facts()
            began, started = time.monotonic(), datetime.now(UTC)
            grid = grid_of(settings, facts.config)
            with_tokens = settings.patch_tokens
            for departure in departures(facts.config, grid.spec, grid.colour):
                LOGGER.warning("%s", departure)
            plan = plan_slides(part, output, encoder=facts, grid=grid, with_tokens=with_tokens)
            target = RayTarget(
                output=output,
                encoder=facts,
                grid=grid,
                with_tokens=with_tokens,
                claims=claims,
                plan=plan,
                refused=list(plan.refused),
            )
            _embed(part, target, workers)
            target.devices = ",".join(sorted(workers.devices))
        result = result_of(target, **target.times, seconds=time.monotonic() - began)
        skipped = sorted([*plan.skipped, *plan.empty])
        record = record_of(target, whole, settings, skipped=skipped) | {
            "started": started.isoformat(timespec="seconds"),
            "seconds": result.seconds,
            "wait_s": result.wait_s,
            "forward_s": result.forward_s,
            "workers": workers.n_workers,
        }
        write_embed_record(target, record, whole=whole, part=part)
    return result


def _embed(part: Catalogue, target: RayTarget, workers: RayWorkers) -> None:
    """Have the slides of the plan embedded, whatever becomes of workers."""
    todo = target.plan.todo
    names, areas = (part.column(k).to_pylist() for k in ("slide_id", "tissue_area_mm2"))
    wanted = {name: area for name, area in zip(names, areas, strict=True) if name in todo}
    queue = SlideQueue(wanted, n_workers=workers.n_workers)
    began, n_before = time.monotonic(), len(part) - len(todo)
    with meter("embed", total=len(part), unit="slides", done=n_before) as progress:
        for outcome in workers.work_off(queue):
            n_settled = _settle(part, target, queue, outcome)
            _show(progress, n_settled, target, began)


def _settle(part: Catalogue, target: RayTarget, queue: SlideQueue, outcome: Outcome) -> int:
    """Note what became of a group; gives the number of slides that are done with."""
    if outcome.report is not None:
        target.take(outcome.report)
        return len(outcome.slide_ids)
    unfinished = target.take_whole_bags(part, outcome.slide_ids)
    told = "a worker died with %d slides unfinished, which others embed: %s"
    LOGGER.warning(told, len(unfinished), outcome.death)
    given_up = queue.put_back(unfinished)
    for slide_id in given_up:
        reason = f"two workers died while they had it, the second one alone ({outcome.death})."
        target.refuse(
            part.row(slide_id).uri, f"{reason} Give workers more memory, or leave it out."
        )
    return len(outcome.slide_ids) - len(unfinished) + len(given_up)


def _show(progress: Meter, n_settled: int, target: RayTarget, began: float) -> None:
    rate = target.n_tiles / max(time.monotonic() - began, 1e-9)
    refused = f", {len(target.refused)} refused" if target.refused else ""
    progress.advance(n_settled, f"{rate:.0f} tiles/s{refused}")


@contextmanager
def _seen(output: str) -> Iterator[str | None]:
    """A file in the output while the run lasts, by which a worker knows that this is it."""
    if is_remote(output):
        yield None
        return
    marker = Path(output) / f".run-{uuid.uuid4().hex[:8]}"
    marker.touch()
    try:
        yield str(marker)
    finally:
        marker.unlink(missing_ok=True)


def _work(
    encoder: str | Path,
    whole: Catalogue,
    part: Catalogue,
    output: str,
    *,
    settings: EmbedSettings,
    how: OpenEncoder,
    marker: str | None,
) -> RemoteWork:
    """What workers are told, with every path made absolute."""
    named, file = _with_absolute_file(str(encoder))
    slides = [part.location(row.slide_id) for row in part.spread(SEEN_FIRST).rows()]
    local = [each for each in slides if not is_remote(each) and Path(each).exists()]
    return RemoteWork(
        encoder=named,
        catalogue=absolute(whole.path),
        catalogue_fingerprint=whole.fingerprint,
        output=output,
        settings=settings,
        device=_one_device(how),
        precision=how.precision,
        trust_remote_code=how.trust_remote_code,
        must_see=(*([marker] if marker else []), *([file] if file else []), *local),
    )


def _with_absolute_file(encoder: str) -> tuple[str, str | None]:
    """An encoder's name with the file or folder in it made absolute; and that, if there is one."""
    if encoder in PRESETS or encoder in BUNDLED:
        return encoder, None
    if Path(encoder).is_dir():
        return absolute(encoder), absolute(encoder)
    preset, equals, weights = encoder.partition("=")
    if weights and Path(weights).exists():
        return f"{preset}{equals}{absolute(weights)}", absolute(weights)
    file = encoder.rpartition(":")[0]
    if not file.endswith(".py"):
        return encoder, None
    if not Path(file).is_absolute():  # made absolute it would be another encoder by its fingerprint
        msg = "is looked for by workers in folders of their own. Name the file by its whole path."
        raise EncoderError(encoder, msg)
    return encoder, file


def _one_device(how: OpenEncoder) -> str:
    if not isinstance(how.device, str):
        msg = f"embed_on_ray: needs one device a worker; got {how.device}. Ask for more workers."
        raise ValueError(msg)
    return how.device
