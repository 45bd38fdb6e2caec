"""Pretraining of a tile encoder: tiles in, encoder folder out."""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path
from typing import Any

from anlage.distributed import ALONE, Ranks
from anlage.errors import CatalogueError
from anlage.progress import Meter, meter
from anlage.slides.catalogue import Catalogue
from anlage.tiles.stream import TileBatch
from anlage.training.checkpoint import SavedCheckpoint, newest_checkpoint
from anlage.training.checkpoint_writer import CheckpointWriter
from anlage.training.device_feed import on_device
from anlage.training.log import MetricsLog, SilentLog, log_of
from anlage.training.pending_step import PendingStep
from anlage.training.plan import plan_of
from anlage.training.run_record import refuse_existing_run, resumed_record, run_record
from anlage.training.run_saves import (
    PretrainResult,
    encoder_config,
    full_disk_told,
    save_run,
    save_run_encoder,
)
from anlage.training.run_start import (
    claim,
    device_of_rank,
    hold_folder,
    refuse_another_run,
    refuse_full_disk,
    refuse_uneven,
)
from anlage.training.run_watch import RunWatch
from anlage.training.step_meters import StepMeters
from anlage.training.stopping import stop_on_signals
from anlage.training.tile_config import TilePretrainConfig
from anlage.training.tile_feed import tile_list_of, tile_sampler, tile_stream
from anlage.training.trackers import refuse_missing_trackers
from anlage.training.train_step import launch_step
from anlage.training.training_state import Training, fresh_training
from anlage.training.watched_tiles import WatchedTiles

LOGGER = logging.getLogger(__name__)


def pretrain_tiles(
    config: TilePretrainConfig,
    catalogue: Catalogue | Path | str,
    run_dir: Path | str,
    *,
    resume: bool = False,
    device: str = "auto",
    threads: int = 2,
    watched: WatchedTiles | None = None,
    trackers: Sequence[str] = (),
    ranks: Ranks = ALONE,
) -> PretrainResult:
    """Pretrain a tile encoder by self-distillation, or from a frozen teacher, on streamed tiles.

    One readable loop for one device and for many. Every random choice (tile, views, masks, dropped
    paths) is a function of the seed and the tile's or step's number, so a resumed run is
    bit-identical on CPU to one that was never stopped, and one on any number of ranks is equal but
    for rounding (with stochastic depth, whose draws depend on the parts of a step, in expectation).

    Args:
        config: The recipe, from ``load_recipe(name, TilePretrainConfig)``.
        catalogue: Catalogue of slides, or its path; the same on all ranks.
        run_dir: Folder of the run, seen by all ranks; rank 0 writes, and each its part of a
            checkpoint.
        resume: Go on from the newest checkpoint in ``run_dir``, made by any number of ranks; a run
            with no checkpoint yet starts at step 0.
        device: ``auto`` (CUDA if there is one), ``cpu``, ``cuda`` or ``cuda:1``; with several ranks
            each takes the CUDA device of its number on its machine.
        threads: Threads of each rank that read and decode tiles.
        watched: Labelled tiles that the run is watched on every ``watch.every`` steps.
        trackers: Other trackers that are told the metrics: ``wandb``, ``mlflow``, ``trackio``.
        ranks: The processes that share each step, from ``process_group``.

    Returns:
        Where the encoder is and whether the run is finished; the same on all ranks.

    Raises:
        DeviceError: If there is no such device here, or CUDA graphs are asked for elsewhere.
        DistributedError: If the ranks cannot be laid out as ``engine`` says.
        CatalogueError: If no slide is left after the choice of split.
        CheckpointError: If ``run_dir`` has a run and ``resume`` is false, the run was made by
            another configuration, catalogue, teacher or watched tiles, or another process is
            training in it; or the run that ``init`` or ``distill`` names has other networks.
        EncoderError: If the encoder that ``init`` or ``distill`` names does not fit.
        LabelledDataError: If the watched tiles cannot be probed.
        TrainingError: If a loss is not finite (before any weight changes), tiles cannot be read,
            the disk has no room for the run, or the ranks cannot share a batch.
    """
    run_dir, place = Path(run_dir), device_of_rank(device, ranks)
    refuse_missing_trackers(trackers)
    refuse_uneven(config, ranks)
    slides = usable_slides(config, catalogue)
    record = run_record(config, slides, n_ranks=ranks.world_size)
    record |= _tiles_record(config, watched)
    if not resume:
        ranks.from_main(lambda: refuse_existing_run(run_dir))  # before anything in it is touched
    with ExitStack() as held:
        ranks.from_main(lambda: hold_folder(run_dir, held))
        checkpoints = run_dir / "checkpoints"
        newest = newest_checkpoint(checkpoints, ranks=ranks) if resume else None
        training = fresh_training(
            config, run_dir, record, device=place, ranks=ranks, is_restored=newest is not None
        )
        if newest is not None:
            _go_on(training, newest)
        watch = RunWatch(training, watched)
        is_over = training.step >= config.steps or watch.is_over
        if not is_over:
            ranks.from_main(lambda: refuse_full_disk(training))
        ranks.from_main(lambda: claim(run_dir, record, resume=resume))
        with full_disk_told(training):
            if is_over:
                save_run_encoder(training)
            else:
                training.record = resumed_record(training.record, record, step=training.step)
                _train(training, slides, watch, threads=threads, trackers=trackers)
    finished = training.step >= config.steps
    return PretrainResult(
        run_dir,
        run_dir / "encoder",
        training.step,
        finished or watch.is_over,
        ended_early=watch.is_over and not finished,
    )


def _tiles_record(config: TilePretrainConfig, watched: WatchedTiles | None) -> dict[str, Any]:
    """What a run's record says of the tiles that are named beside its slides."""
    told = {}
    if (tiles := tile_list_of(config)) is not None:
        told["tile_list"] = {"source": config.tiles.list, "sha256": tiles.fingerprint}
    if watched is not None:
        told["watched"] = {"source": str(watched.path), "sha256": watched.fingerprint}
    return told


def _go_on(training: Training, newest: SavedCheckpoint) -> None:
    """Take over the newest checkpoint."""
    refuse_another_run(training.run_dir, old=newest.provenance, new=training.record)
    training.restore(newest)
    training.record = newest.provenance
    LOGGER.info(
        "resuming %s after step %d of %d", training.run_dir, training.step, training.config.steps
    )


def _train(
    training: Training,
    slides: Catalogue,
    watch: RunWatch,
    *,
    threads: int,
    trackers: Sequence[str],
) -> None:
    """Run steps until the last one, a signal, or the end of patience.

    On a GPU a step is read after the next one was begun, so that it never waits for the host.
    """
    config, ranks = training.config, training.ranks
    folder, keep = training.run_dir / "checkpoints", config.keep_checkpoints
    with (
        stop_on_signals() as stop,
        log_of(training, trackers) as log,
        _progress(training) as progress,
        CheckpointWriter(folder, keep=keep, ranks=ranks) as writer,
        closing(_batches(training, slides, threads=threads)) as batches,
    ):
        report = _Report(training, watch, log, progress)
        for batch, meters in batches:
            pending = launch_step(training, batch, wants_stop=bool(stop))
            is_last = training.step == config.steps
            saves = is_last or training.step % config.checkpoint_every == 0
            report.add(pending, meters, at_once=saves or watch.is_due(training))
            stops = bool(stop) if ranks.is_alone else report.wants_stop
            if stops or watch.is_over:
                report.catch_up()
            if saves or stops or watch.is_over:
                log.sync()
                save_run(training, writer)
                meters.begin_step()
            if stops or watch.is_over:
                told = "stopped after step %d; resume to go on"
                if watch.is_over:
                    told = "ended after step %d: the probe that is watched got no better"
                LOGGER.warning(told, training.step)
                break
        writer.wait()


def _progress(training: Training) -> AbstractContextManager[Meter]:
    steps, done = training.config.steps, training.step
    is_shown = training.ranks.is_main
    return meter("pretrain", total=steps, unit="steps", done=done, is_shown=is_shown)


class _Report:
    """Reads steps, looks at the teacher where it is time, and writes both down."""

    def __init__(
        self,
        training: Training,
        watch: RunWatch,
        log: MetricsLog | SilentLog,
        progress: Meter,
    ) -> None:
        self._training, self._watch, self._log = training, watch, log
        self._progress = progress
        self._reads_late = training.device.type == "cuda"
        self._behind: tuple[PendingStep, StepMeters] | None = None
        self.wants_stop = False

    def add(self, pending: PendingStep, meters: StepMeters, *, at_once: bool) -> None:
        """Take a step that was begun; read the one before, and itself if the host needs it."""
        self.catch_up()
        self._behind = pending, meters
        if at_once or not self._reads_late:
            self.catch_up()

    def catch_up(self) -> None:
        """Read what was not read yet."""
        if self._behind is None:
            return
        (pending, meters), self._behind = self._behind, None
        metrics = pending.read() | meters.of_step(pending.step)
        if pending.step + 1 == self._training.step and self._watch.is_due(self._training):
            config = encoder_config(self._training)
            metrics |= self._watch.after_step(self._training, pending.batch, config)
            meters.begin_step()
        self.wants_stop = pending.wants_stop
        self._log.write(pending.step, metrics)
        self._watch.show(self._log, pending.step)
        self._progress.advance(note=f"loss {metrics['loss']:.3f}")


def _batches(
    training: Training, slides: Catalogue, *, threads: int
) -> Generator[tuple[TileBatch, StepMeters]]:
    """The batches of the steps that are left, of the last stage in its own size at its time."""
    config, run_dir, ranks = training.config, training.run_dir, training.ranks
    turn = config.first_step_of_last_stage
    if training.step < turn < config.steps:
        tile_sampler(config.of_last_stage, slides)  # refuses now what it would refuse at the turn
    planned = plan_of(config).stages
    for stage, takes, last in (
        (config, planned[0], turn),
        (config.of_last_stage, planned[-1], config.steps),
    ):
        if training.step >= last:
            continue
        training.config = stage
        with tile_stream(stage, slides, run_dir=run_dir, threads=threads) as stream:
            meters = StepMeters(training, takes, stream)
            batches = stream.batches(training.step, last, ranks=ranks)
            for batch in on_device(batches, training.device):
                yield batch, meters


def usable_slides(config: TilePretrainConfig, catalogue: Catalogue | Path | str) -> Catalogue:
    """The slides of a recipe's split.

    Raises:
        CatalogueError: If there is none.
    """
    opened = catalogue if isinstance(catalogue, Catalogue) else Catalogue.open(Path(catalogue))
    chosen = opened.select(split=config.tiles.split) if config.tiles.split else opened
    if len(chosen) == 0:
        raise CatalogueError(
            opened.path,
            f"needs slides with split={config.tiles.split!r}; got none of {len(opened)}. Add a "
            "`split` column with `anlage index --labels`, or set tiles.split=null.",
        )
    return chosen
