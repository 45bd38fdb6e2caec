"""Pretraining of a tile encoder on one device: tiles in, encoder folder out."""

from __future__ import annotations

import errno
import logging
import shutil
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from anlage.encoders.folder import EncoderConfig, save_encoder
from anlage.encoders.tile_encoder import torch_device
from anlage.errors import CatalogueError, CheckpointError, TrainingError
from anlage.folder_lock import lock_folder
from anlage.progress import meter
from anlage.slides.catalogue import Catalogue
from anlage.tiles.quarantine import JOURNAL
from anlage.tiles.stream import TileBatch
from anlage.training.checkpoint import load_newest_checkpoint, save_checkpoint
from anlage.training.log import MetricsLog
from anlage.training.plan import plan_of
from anlage.training.run_record import (
    compare_records,
    has_begun,
    read_record,
    refuse_existing_run,
    resumed_record,
    run_record,
    write_record,
)
from anlage.training.run_watch import RunWatch
from anlage.training.step_meters import StepMeters
from anlage.training.stopping import stop_on_signals
from anlage.training.tile_config import TilePretrainConfig
from anlage.training.tile_feed import tile_sampler, tile_stream
from anlage.training.trackers import refuse_missing_trackers
from anlage.training.train_step import train_step
from anlage.training.training_state import Training, fresh_training
from anlage.training.watched_tiles import WatchedTiles

LOGGER = logging.getLogger(__name__)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SOURCES = {
    "init": "weights to start from",
    "distilled_from": "teacher",
    "watched": "watched tiles",
}


@dataclass(frozen=True)
class PretrainResult:
    """How a pretraining run ended.

    Attributes:
        run_dir: The run's folder: ``run.json``, ``metrics.jsonl``, ``checkpoints/``, ``encoder/``.
        encoder: The encoder folder, written at the last checkpoint.
        steps: Finished steps.
        is_finished: False if a signal stopped it; the same call with ``resume`` goes on.
        ended_early: Whether it is finished because the probe that it watched got no better.
    """

    run_dir: Path
    encoder: Path
    steps: int
    is_finished: bool
    ended_early: bool = False


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
) -> PretrainResult:
    """Pretrain a tile encoder by self-distillation, or from a frozen teacher, on streamed tiles.

    One readable loop for one device. Every random choice (tile, views, masks, dropped paths) is a
    function of the seed and the tile's or step's number, so a resumed run is bit-identical on CPU
    to one that was never stopped.

    Args:
        config: The recipe, from ``load_recipe(name, TilePretrainConfig)``.
        catalogue: Catalogue of slides, or its path.
        run_dir: Folder of the run.
        resume: Go on from the newest checkpoint in ``run_dir``; a run with no checkpoint yet
            starts at step 0.
        device: ``auto`` (CUDA if there is one), ``cpu``, ``cuda`` or ``cuda:1``.
        threads: Threads that read and decode tiles.
        watched: Labelled tiles that the run is watched on every ``watch.every`` steps.
        trackers: Other trackers that are told the metrics: ``wandb``, ``mlflow``, ``trackio``.

    Returns:
        Where the encoder is and whether the run is finished.

    Raises:
        DeviceError: If there is no such device here.
        CatalogueError: If no slide is left after the choice of split.
        CheckpointError: If ``run_dir`` has a run and ``resume`` is false, the run was made by
            another configuration, catalogue, teacher or watched tiles, or another process is
            training in it; or the run that ``init`` or ``distill`` names has other networks.
        EncoderError: If the encoder that ``init`` or ``distill`` names does not fit.
        LabelledDataError: If the watched tiles cannot be probed.
        TrainingError: If a loss is not finite (before any weight changes), tiles cannot be read, or
            the disk has no room for the run.
    """
    run_dir, place = Path(run_dir), torch_device(device)
    refuse_missing_trackers(trackers)
    slides = usable_slides(config, catalogue)
    record = run_record(config, slides)
    if not resume:
        refuse_existing_run(run_dir)  # before anything in it is touched
    held = "another process is training in this folder. Wait for its end, or name another folder."
    with lock_folder(run_dir, held=CheckpointError(run_dir, held)):
        newest = load_newest_checkpoint(run_dir / "checkpoints") if resume else None
        training = fresh_training(
            config, run_dir, record, device=place, is_restored=newest is not None
        )
        if watched is not None:
            record["watched"] = {"source": str(watched.path), "sha256": watched.fingerprint}
        if newest is not None:
            _go_on(training, newest)
        watch = RunWatch(training, watched)
        is_over = training.step >= config.steps or watch.is_over
        if not is_over:
            _refuse_full_disk(training)
        _claim(run_dir, record, resume=resume)
        with _full_disk_told(training):
            if is_over:
                _save_encoder(training)
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


def _go_on(training: Training, newest: tuple[int, dict[str, Any], dict[str, Any]]) -> None:
    """Take over the newest checkpoint."""
    step, state, provenance = newest
    _refuse_another_run(training.run_dir, old=provenance, new=training.record)
    training.restore(step, state)
    training.record = provenance
    LOGGER.info("resuming %s after step %d of %d", training.run_dir, step, training.config.steps)


def _refuse_another_run(run_dir: Path, *, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuse to resume with another recipe, or with other slides, weights or tiles than before."""
    compare_records(run_dir, old=old, new=new)
    for name, what in SOURCES.items():
        before, now = (record.get(name, {}).get("sha256") for record in (old, new))
        is_done_with = name == "init" and now is None  # a checkpoint takes the place of its weights
        if before != now and not is_done_with:
            msg = f"needs the {what} it began with; their sha256 was {before}, is now {now}. "
            raise CheckpointError(run_dir, f"{msg}Restore them, or start a new run folder.")


def _train(
    training: Training,
    slides: Catalogue,
    watch: RunWatch,
    *,
    threads: int,
    trackers: Sequence[str],
) -> None:
    """Run steps until the last one, a signal, or the end of patience."""
    config, first = training.config, training.step
    log_config = config.model_dump(mode="json")
    with (
        stop_on_signals() as stop,
        MetricsLog(training.run_dir, first_step=first, trackers=trackers, config=log_config) as log,
        meter("pretrain", total=config.steps, unit="steps", done=first) as progress,
        closing(_batches(training, slides, threads=threads)) as batches,
    ):
        for batch, meters in batches:
            step = training.step
            metrics = train_step(training, batch) | meters.of_step(step, batch)
            metrics |= watch.after_step(training, batch, encoder_config(training))
            log.write(step, metrics)
            watch.show(log, step)
            is_last = training.step == config.steps or watch.is_over
            if is_last or stop or training.step % config.checkpoint_every == 0:
                _save(training)
            progress.advance(note=f"loss {metrics['loss']:.3f}")
            if stop or watch.is_over:
                told = "stopped after step %d; resume to go on"
                if watch.is_over:
                    told = "ended after step %d: the probe that is watched got no better"
                LOGGER.warning(told, training.step)
                break
            meters.begin_step()


def _batches(
    training: Training, slides: Catalogue, *, threads: int
) -> Generator[tuple[TileBatch, StepMeters]]:
    """The batches of the steps that are left, of the last stage in its own size at its time."""
    config, run_dir = training.config, training.run_dir
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
            for batch in stream.batches(training.step, last):
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


def _claim(run_dir: Path, record: Mapping[str, Any], *, resume: bool) -> None:
    """Take a new run folder, or check that an old one belongs to this run."""
    if not resume:
        refuse_existing_run(run_dir)
    old = read_record(run_dir)
    if old is not None and has_begun(run_dir):
        _refuse_another_run(run_dir, old=old, new=record)
        return
    if old is not None and old != record:
        LOGGER.warning("%s did no step; its run.json is replaced by this run's", run_dir)
        (run_dir / JOURNAL).unlink(missing_ok=True)
    write_record(run_dir, record)


def _save(training: Training) -> None:
    """Write a checkpoint, and the teacher as an encoder folder beside it."""
    save_checkpoint(
        training.run_dir / "checkpoints",
        training.state(),
        step=training.step,
        provenance=training.record,
        keep=training.config.keep_checkpoints,
    )
    _save_encoder(training)


@contextmanager
def _full_disk_told(training: Training) -> Iterator[None]:
    """Say in our words that the disk is full, whatever was being written.

    Raises:
        TrainingError: If it is; the checkpoints written before are untouched.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        is_full = any(f"os error {code})" in str(error) for code in FULL)  # safetensors' own words
        if not is_full and getattr(error, "errno", None) not in FULL:
            raise
        raise TrainingError(
            training.run_dir,
            f"the disk is full after step {training.step}; the checkpoints before it are whole. "
            "Free some space, then --resume.",
        ) from error


def _refuse_full_disk(training: Training) -> None:
    """Refuse to begin where the checkpoints that are kept at a time, and one more, do not fit.

    Those that are there already make room for new ones.
    """
    networks = (training.student, training.teacher)
    n_bytes = [p.nbytes for network in networks for p in network.parameters()]
    moments = 2 * sum(p.nbytes for p in training.student.parameters())
    one = sum(n_bytes) + moments
    there = sum(file.stat().st_size for file in training.run_dir.glob("checkpoints/step-*.pt"))
    needed = max(one, one * (training.config.keep_checkpoints + 1) - there)
    free = shutil.disk_usage(training.run_dir).free
    if free < needed:
        raise TrainingError(
            training.run_dir,
            f"needs {needed / 2**20:,.1f} MiB of the disk to keep "
            f"{training.config.keep_checkpoints} checkpoints and write one more; it has "
            f"{free / 2**20:,.1f} MiB. Free some, or lower keep_checkpoints.",
        )


def _save_encoder(training: Training) -> None:
    save_encoder(training.run_dir / "encoder", training.teacher.encoder, encoder_config(training))


def encoder_config(training: Training) -> EncoderConfig:
    """What the encoder of now is, and how it is to be used."""
    config = training.config
    return EncoderConfig(
        architecture=config.model.model_dump(),
        tile_px=config.tile_px,
        mpp=config.mpp,
        mean=config.mean,
        std=config.std,
        colour=config.tiles.colour,
        pooling=config.encoder.pooling,
        provenance={**training.record, "step": training.step, "network": "teacher"},
    )
