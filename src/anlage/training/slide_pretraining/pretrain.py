"""Pretraining of a slide encoder: bags in, slide encoder folder out."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from anlage.bags.loader import BagSet
from anlage.bags.slide_labels import SlideLabels
from anlage.distributed import ALONE, Ranks
from anlage.errors import RecipeError
from anlage.progress import meter
from anlage.provenance import name_alone
from anlage.training.checkpoint import SavedCheckpoint, newest_checkpoint
from anlage.training.checkpoint_writer import CheckpointWriter
from anlage.training.log import log_of
from anlage.training.run_record import (
    has_begun,
    read_record,
    refuse_existing_run,
    resumed_record,
)
from anlage.training.run_saves import PretrainResult, full_disk_told
from anlage.training.run_start import (
    claim,
    device_of_rank,
    hold_folder,
    refuse_another_run,
    refuse_full_disk,
    refuse_uneven,
)
from anlage.training.slide_pretraining.config import SlidePretrainConfig
from anlage.training.slide_pretraining.feed import ChosenBags, choose_bags, drawn_parts, step_again
from anlage.training.slide_pretraining.networks import MaskedBags
from anlage.training.slide_pretraining.saves import (
    save_run_slide_encoder,
    save_slide_run,
    slide_record,
)
from anlage.training.slide_pretraining.state import FORMAT, SlideTraining, fresh_slide_training
from anlage.training.slide_pretraining.step import slide_step
from anlage.training.slide_pretraining.watch import SlideRunWatch
from anlage.training.slide_pretraining.watched_slides import WatchedSlides, watched_slides
from anlage.training.stopping import stop_on_signals
from anlage.training.trackers import refuse_missing_trackers
from anlage.training.whole_bags import lost_since, whole_bags, without_left_out

LOGGER = logging.getLogger(__name__)


def pretrain_slides(
    config: SlidePretrainConfig,
    bags: BagSet | Path | str,
    run_dir: Path | str,
    *,
    resume: bool = False,
    device: str = "auto",
    threads: int = 2,
    table: SlideLabels | None = None,
    trackers: Sequence[str] = (),
    ranks: Ranks = ALONE,
) -> PretrainResult:
    """Pretrain a slide encoder as a masked autoencoder on bags of tile embeddings.

    The encoder sees a quarter of a bag's tiles, a light decoder predicts the standardised
    embeddings of the others. Every random choice (order, window, place, mirrors, mask, dropout) is
    a function of the seed and the draw's or step's number, so a resumed run is bit-identical on
    CPU to one that was never stopped, and one on any number of ranks is equal but for rounding
    (with dropout, whose draws depend on the parts of a step, in expectation).

    Each bag is read once before the first step, and the run does without those that are damaged or
    hold NaN. Where it goes on and a bag that it began with is damaged or gone, other bags are drawn
    in its place.

    Args:
        config: The recipe, from ``load_recipe(name, SlidePretrainConfig)``.
        bags: Bags of one tile encoder, or their folder or URL; the same on all ranks.
        run_dir: Folder of the run, seen by all ranks; rank 0 writes, and each its part of a
            checkpoint.
        resume: Go on from the newest checkpoint in ``run_dir``, made by any number of ranks; a run
            with no checkpoint yet starts at step 0.
        device: ``auto`` (CUDA if there is one), ``cpu``, ``cuda`` or ``cuda:1``; with several ranks
            each takes the CUDA device of its number on its machine.
        threads: Threads of each rank that read bags.
        table: Whose the slides are, their split and labels; without it each slide is a patient of
            its own, and nothing is probed.
        trackers: Other trackers that are told the metrics: ``wandb``, ``mlflow``, ``trackio``.
        ranks: The processes that share each step, from ``process_group``.

    Returns:
        Where the encoder is and whether the run is finished; the same on all ranks.

    Raises:
        BagError: If bags are of several encoders or widths, none can be trained on, or one that
            was read cannot be read any more.
        RecipeError: If the recipe names a label and there is no table.
        CatalogueError: If the table lacks a column or split that the recipe names.
        DeviceError: If there is no such device here.
        DistributedError: If the ranks cannot be laid out as ``engine`` says.
        CheckpointError: If ``run_dir`` has a run and ``resume`` is false, the run was made by
            another configuration, bags or labels, or another process is training in it.
        LabelledDataError: If the labelled slides cannot be probed.
        TrainingError: If a loss is not finite (before any weight changes), the disk has no room for
            the run, or the ranks cannot share a batch.

    Source: Xu et al. 2024, Prov-GigaPath, Nature 630 (LongNet pretrained as a masked autoencoder);
    He et al. 2022, MAE, arXiv:2111.06377. What of it is ours is marked in the recipes.
    """
    run_dir, place = Path(run_dir), device_of_rank(device, ranks)
    refuse_missing_trackers(trackers)
    refuse_uneven(config, ranks)
    began = ranks.from_main(lambda: _record_so_far(run_dir, resume=resume))
    opened = bags if isinstance(bags, BagSet) else BagSet.open(bags, grid_um=config.bags.grid_um)
    chosen, slides = _chosen(config, opened, table, began, threads=threads, ranks=ranks)
    record = _record(config, chosen, slides, ranks)
    with ExitStack() as held:
        ranks.from_main(lambda: hold_folder(run_dir, held))
        training = _begun(config, chosen, run_dir, record, resume=resume, device=place, ranks=ranks)
        watch = SlideRunWatch(training, chosen, slides, threads=threads)
        is_over = training.step >= training.steps or watch.is_over
        if not is_over:
            ranks.from_main(lambda: refuse_full_disk(training))
        ranks.from_main(lambda: claim(run_dir, record, resume=resume))
        with full_disk_told(training):
            if is_over:
                save_run_slide_encoder(training)
            else:
                training.record = resumed_record(training.record, record, step=training.step)
                _train(training, chosen, watch, threads=threads, trackers=trackers)
    finished = training.step >= training.steps
    return PretrainResult(
        run_dir,
        run_dir / "encoder",
        training.step,
        finished or watch.is_over,
        ended_early=watch.is_over and not finished,
        left_out=chosen.bags.refused,
    )


def _record_so_far(run_dir: Path, *, resume: bool) -> Mapping[str, Any]:
    """The record of the run that goes on; empty for one that begins, in a folder without a run."""
    if not resume:
        refuse_existing_run(run_dir)
    return (read_record(run_dir) or {}) if has_begun(run_dir) else {}


def _chosen(
    config: SlidePretrainConfig,
    bags: BagSet,
    table: SlideLabels | None,
    began: Mapping[str, Any],
    *,
    threads: int,
    ranks: Ranks,
) -> tuple[ChosenBags, WatchedSlides | None]:
    """The bags of the run, each read once, and the slides it is watched on."""

    def choice(there: BagSet) -> tuple[ChosenBags, WatchedSlides | None]:
        lost = lost_since(there, began)
        chosen = choose_bags(config, there, table, lost=lost, ranks=ranks)
        return chosen, _watched(config, there, table, lost)

    known = without_left_out(bags, began)
    chosen, slides = choice(known)  # refuses what can be told without reading
    whole = whole_bags(chosen.cache, threads=threads, ranks=ranks)
    if whole is not known:
        again, slides = choice(whole)
        chosen = replace(again, cache=chosen.cache)
    if chosen.lost:
        told = "%s: goes on without %d bags that it began with: %s"
        LOGGER.warning(told, bags.folder, len(chosen.lost), ", ".join(sorted(chosen.lost)))
    return chosen, slides


def _record(
    config: SlidePretrainConfig, chosen: ChosenBags, slides: WatchedSlides | None, ranks: Ranks
) -> dict[str, Any]:
    record = slide_record(config, chosen, n_ranks=ranks.world_size)
    if slides is not None:
        record["watched"] = {"source": name_alone(str(slides.path)), "sha256": slides.fingerprint}
    return record


def _begun(
    config: SlidePretrainConfig,
    chosen: ChosenBags,
    run_dir: Path,
    record: dict[str, Any],
    *,
    resume: bool,
    device: torch.device,
    ranks: Ranks,
) -> SlideTraining:
    """The run at step 0, or as its newest checkpoint holds it."""
    folder = run_dir / "checkpoints"
    newest = newest_checkpoint(folder, ranks=ranks, form=FORMAT) if resume else None
    training = fresh_slide_training(
        config,
        run_dir,
        record,
        input_width=chosen.bags.width,
        n_bags=len(chosen.train),
        device=device,
        ranks=ranks,
    )
    if newest is not None:
        _go_on(training, newest)
    return training


def _watched(
    config: SlidePretrainConfig,
    bags: BagSet,
    table: SlideLabels | None,
    lost: Collection[str],
) -> WatchedSlides | None:
    if config.watch.label is None:
        return None
    if table is None:
        msg = f"watch.label={config.watch.label} needs the table that has it. Name it with --watch."
        raise RecipeError(str(bags.folder), msg)
    return watched_slides(table, bags, label=config.watch.label, lost=lost)


def _go_on(training: SlideTraining, newest: SavedCheckpoint) -> None:
    """Take over the newest checkpoint."""
    refuse_another_run(training.run_dir, old=newest.provenance, new=training.record)
    training.restore(newest)
    training.record = newest.provenance
    told = "resuming %s after step %d of %d"
    LOGGER.info(told, training.run_dir, training.step, training.steps)


def _train(
    training: SlideTraining,
    chosen: ChosenBags,
    watch: SlideRunWatch,
    *,
    threads: int,
    trackers: Sequence[str],
) -> None:
    """Run steps until the last one, a signal, or the end of patience."""
    config, ranks = training.config, training.ranks
    folder, keep = training.run_dir / "checkpoints", config.keep_checkpoints
    steps, done, is_shown = training.steps, training.step, ranks.is_main
    with (
        stop_on_signals() as stop,
        log_of(training, trackers) as log,
        meter("pretrain", total=steps, unit="steps", done=done, is_shown=is_shown) as shown,
        CheckpointWriter(folder, keep=keep, ranks=ranks, form=FORMAT) as writer,
        closing(drawn_parts(training, chosen, threads=threads)) as drawn,
    ):
        parts = _Clocked(drawn)
        while training.step < steps:
            parts.begin_step()
            taken = islice(parts, config.accumulate)
            metrics, any_stops = slide_step(
                training, taken, wants_stop=bool(stop), again=lambda: step_again(training, chosen)
            )
            metrics |= parts.of_step(metrics["tiles"]) | watch.after_step(training)
            log.write(training.step - 1, metrics)
            shown.advance(note=f"loss {metrics['loss']:.3f}")
            saves = training.step == steps or training.step % config.checkpoint_every == 0
            stops = bool(stop) if ranks.is_alone else any_stops
            if saves or stops or watch.is_over:
                log.sync()
                save_slide_run(training, writer)
            if stops or watch.is_over:
                told = "stopped after step %d; resume to go on"
                if watch.is_over:
                    told = "ended after step %d: the probe that is watched got no better"
                LOGGER.warning(told, training.step)
                break
        writer.wait()


class _Clocked:
    """Parts as they come, and how long a step waited for its own."""

    def __init__(self, parts: Iterator[MaskedBags]) -> None:
        self._parts, self._waited, self._began = parts, 0.0, time.perf_counter()

    def __iter__(self) -> Iterator[MaskedBags]:
        return self

    def __next__(self) -> MaskedBags:
        began = time.perf_counter()
        part = next(self._parts)
        self._waited += time.perf_counter() - began
        return part

    def begin_step(self) -> None:
        """Start the clocks anew."""
        self._waited, self._began = 0.0, time.perf_counter()

    def of_step(self, n_tiles: float) -> dict[str, float]:
        """Tiles a second of the step that ends now, and its share of waiting for bags."""
        taken_s = time.perf_counter() - self._began
        return {"tiles_per_s": n_tiles / taken_s, "data_wait_share": self._waited / taken_s}
