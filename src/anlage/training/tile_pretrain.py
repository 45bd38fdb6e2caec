"""Pretraining of a tile encoder on one device: tiles in, encoder folder out."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anlage.encoders.folder import EncoderConfig, save_encoder
from anlage.encoders.tile_encoder import torch_device
from anlage.errors import CatalogueError, CheckpointError, TrainingError
from anlage.folder_lock import lock_folder
from anlage.probes.unsupervised import rankme
from anlage.progress import meter
from anlage.slides.catalogue import Catalogue
from anlage.tiles.augment.multi_crop import views
from anlage.tiles.masking import block_masks
from anlage.tiles.quarantine import JOURNAL
from anlage.tiles.stream import TileBatch
from anlage.training.checkpoint import load_newest_checkpoint, save_checkpoint
from anlage.training.ema import update_teacher
from anlage.training.log import MetricsLog
from anlage.training.optimizer import build_optimizer, clip_gradients, set_rates
from anlage.training.precision import autocast_dtype
from anlage.training.run_record import (
    compare_records,
    has_begun,
    read_record,
    refuse_existing_run,
    resumed_record,
    run_record,
    write_record,
)
from anlage.training.schedule import learning_rate, ramp_value
from anlage.training.stopping import stop_on_signals
from anlage.training.student_teacher import EncoderWithHead, StepLoss, step_loss
from anlage.training.tile_config import TilePretrainConfig
from anlage.training.tile_feed import FeedMeter, tile_stream

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class PretrainResult:
    """How a pretraining run ended.

    Attributes:
        run_dir: The run's folder: ``run.json``, ``metrics.jsonl``, ``checkpoints/``, ``encoder/``.
        encoder: The encoder folder, written at the last checkpoint.
        steps: Finished steps.
        is_finished: False if a signal stopped it; the same call with ``resume`` goes on.
    """

    run_dir: Path
    encoder: Path
    steps: int
    is_finished: bool


@dataclass
class Training:
    """Everything a run changes as it goes; what a checkpoint holds.

    Attributes:
        config: The resolved recipe.
        run_dir: The run's folder.
        record: What it was made from: ``run.json``, and what it was resumed with if that changed.
        device: Where tensors live.
        student: Trained network.
        teacher: Its moving average.
        optimizer: AdamW over the student.
        centers: Centres of the teacher's logits (centering only).
        step: Finished steps.
    """

    config: TilePretrainConfig
    run_dir: Path
    record: dict[str, Any]
    device: torch.device
    student: EncoderWithHead
    teacher: EncoderWithHead
    optimizer: torch.optim.AdamW
    centers: dict[str, Tensor]
    step: int = 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds; every random choice is a function of seed and step instead."""
        return {
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "centers": self.centers,
        }

    def restore(self, step: int, state: Mapping[str, Any]) -> None:
        """Take over the state of a checkpoint."""
        self.student.load_state_dict(state["student"])
        self.teacher.load_state_dict(state["teacher"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.centers = {name: c.to(self.device) for name, c in state["centers"].items()}
        self.step = step


def pretrain_tiles(
    config: TilePretrainConfig,
    catalogue: Catalogue | Path | str,
    run_dir: Path | str,
    *,
    resume: bool = False,
    device: str = "auto",
    threads: int = 2,
) -> PretrainResult:
    """Pretrain a tile encoder by self-distillation on tiles streamed from slides.

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

    Returns:
        Where the encoder is and whether the run is finished.

    Raises:
        DeviceError: If there is no such device here.
        CatalogueError: If no slide is left after the choice of split.
        CheckpointError: If ``run_dir`` has a run and ``resume`` is false, the run was made by
            another configuration or catalogue, or another process is training in it.
        TrainingError: If a loss is not finite (before any weight changes), or tiles cannot be read.
    """
    run_dir, place = Path(run_dir), torch_device(device)
    slides = _usable_slides(config, catalogue)
    record = run_record(config, slides)
    if not resume:
        refuse_existing_run(run_dir)  # before anything in it is touched
    held = "another process is training in this folder. Wait for its end, or name another folder."
    with lock_folder(run_dir, held=CheckpointError(run_dir, held)):
        _claim(run_dir, record, resume=resume)
        training = _fresh(config, run_dir, record, device=place)
        if resume:
            _go_on(training, record)
        if training.step < config.steps:
            _train(training, slides, threads=threads)
        else:
            _save_encoder(training)
    finished = training.step >= config.steps
    return PretrainResult(run_dir, run_dir / "encoder", training.step, finished)


def _go_on(training: Training, record: Mapping[str, Any]) -> None:
    """Take over the newest checkpoint, if there is one."""
    config, run_dir = training.config, training.run_dir
    newest = load_newest_checkpoint(run_dir / "checkpoints")
    if newest is not None:
        step, state, provenance = newest
        compare_records(run_dir, old=provenance, new=record)
        training.restore(step, state)
        training.record = provenance
        if step < config.steps:
            training.record = resumed_record(provenance, record, step=step)
        LOGGER.info("resuming %s after step %d of %d", run_dir, step, config.steps)


def _train(training: Training, slides: Catalogue, *, threads: int) -> None:
    """Run steps until the last one, or until a signal asks to stop."""
    config, first = training.config, training.step
    with (
        stop_on_signals() as stop,
        tile_stream(config, slides, run_dir=training.run_dir, threads=threads) as stream,
        MetricsLog(training.run_dir, first_step=first) as log,
        meter("pretrain", total=config.steps, unit="steps", done=first) as progress,
    ):
        feed = FeedMeter(config, stream)
        for step, batch in enumerate(stream.batches(first, config.steps), first):
            metrics = train_step(training, batch) | feed.of_step(step, batch)
            log.write(step, metrics)
            is_last = training.step == config.steps
            if is_last or stop or training.step % config.checkpoint_every == 0:
                _save(training)
            progress.advance(note=f"loss {metrics['loss']:.3f}")
            if stop:
                LOGGER.warning("stopped after step %d; resume to go on", training.step)
                break


def train_step(training: Training, batch: TileBatch) -> dict[str, float]:
    """One optimiser step on one batch of tiles.

    Args:
        training: Networks, optimiser and settings; changed in place.
        batch: uint8 tiles (B, 3, S, S) with their numbers.

    Returns:
        The step's metrics.

    Raises:
        TrainingError: If the loss or the gradient is not finite; nothing has been changed then.
    """
    config, step = training.config, training.step
    set_rates(
        training.optimizer,
        lr=learning_rate(config.optimizer, step, steps=config.steps),
        weight_decay=ramp_value(config.optimizer.weight_decay, step, steps=config.steps),
        prototypes_frozen=step < config.optimizer.freeze_prototypes * config.steps,
    )
    loss = _forward(training, batch)
    _stop_if_not_finite(training, batch, loss)
    training.optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss.total)
    networks = {"encoder": training.student.encoder, "head": training.student.head}
    norms = clip_gradients(networks, max_norm=config.optimizer.clip_norm)
    if not torch.isfinite(torch.stack(list(norms.values()))).all():
        broken = ", ".join(name for name, norm in norms.items() if not torch.isfinite(norm))
        raise TrainingError(
            training.run_dir,
            f"the gradient of the {broken} is not finite at step {step} (the loss is); no weight "
            f"was changed. Tiles: {_tile_names(batch)}. Lower optimizer.peak_lr, or use fp32.",
        )
    training.optimizer.step()
    momentum = ramp_value(config.optimizer.teacher_momentum, step, steps=config.steps)
    update_teacher(training.teacher, training.student, momentum=momentum)
    training.centers = loss.centers
    training.step = step + 1
    spread = rankme(loss.teacher_cls.float().cpu().numpy())
    if spread == 0:
        LOGGER.warning("the teacher's embeddings are all zero at step %d: it has collapsed", step)
    return {
        "loss": float(loss.total.detach()),
        **{f"loss_{name}": float(term) for name, term in loss.terms.items()},
        "lr": learning_rate(config.optimizer, step, steps=config.steps),
        **{f"gradient_norm_{name}": float(norm) for name, norm in norms.items()},
        "teacher_momentum": momentum,
        "teacher_entropy": float(loss.target_entropy),
        "rankme": spread,
    }


def _forward(training: Training, batch: TileBatch) -> StepLoss:
    """Cut and colour the views, draw the masks, run both networks."""
    config, device = training.config, training.device
    pixels = batch.pixels.to(device, non_blocking=True)
    cut = views(pixels, batch.g, spec=config.views, seed=config.seed)
    grid = config.views.global_px // config.model.patch_px
    masks = block_masks(
        batch.g,
        n_views=config.views.n_global,
        grid=(grid, grid),
        seed=config.seed,
        share=config.objective.masked_share,
        ratio=config.objective.mask_ratio,
    ).to(device)
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (config.mean, config.std))
    dropped = torch.Generator(device).manual_seed(config.seed * 1_000_003 + training.step)
    dtype = autocast_dtype(config.precision, device)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        return step_loss(
            (training.student, training.teacher),
            ((cut.global_crops - mean) / std, (cut.local_crops - mean) / std),
            masks,
            objective=config.objective,
            teacher_temperature=ramp_value(
                config.objective.teacher_temperature, training.step, steps=config.steps
            ),
            centers=training.centers,
            generator=dropped,
        )


def _stop_if_not_finite(training: Training, batch: TileBatch, loss: StepLoss) -> None:
    """Refuse to go on from a loss that is not finite: which term, which tiles."""
    if torch.isfinite(loss.total):
        return
    terms = ", ".join(f"{name}={float(value):.4g}" for name, value in loss.terms.items())
    finite = torch.isfinite(loss.per_tile_B).cpu()
    guilty = [r for r, ok in zip(batch.requests, finite.tolist(), strict=True) if not ok]
    raise TrainingError(
        training.run_dir,
        f"the loss is not finite at step {training.step} ({terms}); no weight was changed. "
        f"Tiles: {_tile_names(batch, guilty or None)}. Look at these tiles, lower "
        "optimizer.peak_lr, or use precision=fp32; --resume goes on from the last checkpoint.",
    )


def _tile_names(batch: TileBatch, requests: list[Any] | None = None) -> str:
    chosen = batch.requests if requests is None else requests
    named = [f"{r.slide_id} at ({r.x}, {r.y}), {r.mpp:g} mpp, g={r.g}" for r in chosen]
    more = f" and {len(named) - 8} more" if len(named) > 8 else ""
    return "; ".join(named[:8]) + more


def _usable_slides(config: TilePretrainConfig, catalogue: Catalogue | Path | str) -> Catalogue:
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
        compare_records(run_dir, old=old, new=record)
        return
    if old is not None and old != record:
        LOGGER.warning("%s did no step; its run.json is replaced by this run's", run_dir)
        (run_dir / JOURNAL).unlink(missing_ok=True)
    write_record(run_dir, record)


def _fresh(
    config: TilePretrainConfig, run_dir: Path, record: dict[str, Any], *, device: torch.device
) -> Training:
    """Student, teacher and optimiser at step 0, from the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        student = EncoderWithHead(config.model, config.head)
    teacher = copy.deepcopy(student).requires_grad_(requires_grad=False)
    if config.model.stochastic_depth:
        teacher.eval()  # the teacher sees every block
    student, teacher = student.to(device), teacher.to(device)
    optimizer = build_optimizer(student, config.optimizer, depth=config.model.depth)
    zeros = {name: torch.zeros(config.head.n_prototypes) for name in ("cls", "patch")}
    centers = {name: zero.to(device) for name, zero in zeros.items()}
    return Training(config, run_dir, record, device, student, teacher, optimizer, centers)


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


def _save_encoder(training: Training) -> None:
    config = training.config
    provenance = {**training.record, "step": training.step, "network": "teacher"}
    encoder_config = EncoderConfig(
        architecture=config.model.model_dump(),
        tile_px=config.tile_px,
        mpp=config.mpp,
        mean=config.mean,
        std=config.std,
        colour=config.tiles.colour,
        pooling=config.encoder.pooling,
        provenance=provenance,
    )
    save_encoder(training.run_dir / "encoder", training.teacher.encoder, encoder_config)
