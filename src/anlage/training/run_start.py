"""What is looked at before the first step of a run: whose folder, enough disk, a share for all."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from anlage.distributed import Ranks
from anlage.encoders.tile_encoder import torch_device
from anlage.errors import CheckpointError, TrainingError
from anlage.folder_lock import lock_folder
from anlage.tiles.quarantine import JOURNAL
from anlage.training.run_record import (
    compare_records,
    has_begun,
    read_record,
    refuse_existing_run,
    write_record,
)
from anlage.training.slide_pretraining.config import SlidePretrainConfig
from anlage.training.slide_pretraining.state import SlideTraining
from anlage.training.tile_config import TilePretrainConfig
from anlage.training.training_state import Training

LOGGER = logging.getLogger(__name__)
SOURCES = {
    "init": "weights to start from",
    "distilled_from": "teacher",
    "watched": "watched {rows}",
    "tile_list": "tile list",
}


def device_of_rank(name: str, ranks: Ranks) -> torch.device:
    """The device of a rank: of several on a machine, each has the CUDA device of its number.

    Raises:
        DeviceError: If it is not there.
    """
    device = torch_device(name)
    names_one = ":" in name
    if device.type != "cuda" or ranks.is_alone or names_one:
        return device
    return torch_device(f"cuda:{ranks.local_rank}")


def hold_folder(run_dir: Path, held: ExitStack) -> None:
    """Keep other processes out of a run's folder as long as the stack lasts.

    Raises:
        CheckpointError: If one is training in it.
    """
    told = "another process is training in this folder. Wait for its end, or name another folder."
    held.enter_context(lock_folder(run_dir, held=CheckpointError(run_dir, told)))


def refuse_uneven(config: TilePretrainConfig | SlidePretrainConfig, ranks: Ranks) -> None:
    """Refuse a batch that the ranks cannot share alike.

    Raises:
        TrainingError: If so.
    """
    if config.batch_size % (ranks.world_size * config.accumulate):
        msg = (
            f"batch_size={config.batch_size} needs to be a multiple of ranks x accumulate = "
            f"{ranks.world_size} x {config.accumulate}. Change accumulate, or start another "
            "number of ranks."
        )
        raise TrainingError(ranks.name, msg)


def refuse_another_run(run_dir: Path, *, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuse to resume with another recipe, or with other slides, weights or tiles than before."""
    compare_records(run_dir, old=old, new=new)
    rows = "slides" if new.get("stage") == "slide" else "tiles"
    for name, what in SOURCES.items():
        before, now = (record.get(name, {}).get("sha256") for record in (old, new))
        is_done_with = name == "init" and now is None  # a checkpoint takes the place of its weights
        if before != now and not is_done_with:
            named = what.format(rows=rows)
            msg = f"needs the {named} it began with; their sha256 was {before}, is now {now}. "
            raise CheckpointError(run_dir, f"{msg}Restore them, or start a new run folder.")


def claim(run_dir: Path, record: Mapping[str, Any], *, resume: bool) -> None:
    """Take a new run folder, or check that an old one belongs to this run."""
    if not resume:
        refuse_existing_run(run_dir)
    old = read_record(run_dir)
    if old is not None and has_begun(run_dir):
        refuse_another_run(run_dir, old=old, new=record)
        return
    if old is not None and old != record:
        LOGGER.warning("%s did no step; its run.json is replaced by this run's", run_dir)
        (run_dir / JOURNAL).unlink(missing_ok=True)
    write_record(run_dir, record)


def refuse_full_disk(training: Training | SlideTraining) -> None:
    """Refuse to begin where the checkpoints that are kept at a time, and one more, do not fit.

    Those that are there already make room for new ones.
    """
    one = training.checkpoint_bytes
    there = sum(file.stat().st_size for file in training.run_dir.glob("checkpoints/step-*/*"))
    needed = max(one, one * (training.config.keep_checkpoints + 1) - there)
    free = shutil.disk_usage(training.run_dir).free
    if free < needed:
        raise TrainingError(
            training.run_dir,
            f"needs {needed / 2**20:,.1f} MiB of the disk to keep "
            f"{training.config.keep_checkpoints} checkpoints and write one more; it has "
            f"{free / 2**20:,.1f} MiB. Free some, or lower keep_checkpoints.",
        )
