"""What a run leaves behind: checkpoints, and the teacher as an encoder folder."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from anlage.encoders.folder import EncoderConfig, save_encoder
from anlage.errors import BagError, TrainingError
from anlage.training.checkpoint_writer import CheckpointWriter
from anlage.training.slide_pretraining.state import SlideTraining
from anlage.training.training_state import Training

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class PretrainResult:
    """How a pretraining run ended.

    Attributes:
        run_dir: The run's folder: ``run.json``, ``metrics.jsonl``, ``checkpoints/``, ``encoder/``.
        encoder: The encoder folder, written at the last checkpoint.
        steps: Finished steps.
        is_finished: False if a signal stopped it; the same call with ``resume`` goes on.
        ended_early: Whether it is finished because the probe that it watched got no better.
        left_out: Bags that it did without, of a slide encoder.
    """

    run_dir: Path
    encoder: Path
    steps: int
    is_finished: bool
    ended_early: bool = False
    left_out: tuple[BagError, ...] = ()


def save_run(training: Training, writer: CheckpointWriter) -> None:
    """Begin a checkpoint, and write the encoder of now beside it. Every rank calls it."""
    writer.save(training.state(), step=training.step, provenance=training.record)
    save_run_encoder(training)


def save_run_encoder(training: Training) -> None:
    """Write ``RUN/encoder``, put together from all ranks. Every rank calls it."""
    encoder = training.whole_encoder()
    folder, config = training.run_dir / "encoder", encoder_config(training)
    if encoder is not None:
        save_encoder(folder, encoder, config)


@contextmanager
def full_disk_told(training: Training | SlideTraining) -> Iterator[None]:
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
