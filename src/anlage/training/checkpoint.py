"""Checkpoints: whole or absent, checked by their hash, the newest few kept."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from anlage.errors import CheckpointError
from anlage.files import replace_whole, write_json_whole

LOGGER = logging.getLogger(__name__)
FORMAT = "tile-checkpoint/1"


def save_checkpoint(
    folder: Path, state: Mapping[str, Any], *, step: int, provenance: Mapping[str, Any], keep: int
) -> Path:
    """Write the state after ``step`` optimiser steps and forget the oldest checkpoints.

    ``step-00000100.pt`` comes first and its ``.json`` (format, step, sha256, provenance) last, so
    that a checkpoint with a description is complete; the description's hash finds damage.

    Args:
        folder: ``RUN/checkpoints``.
        state: Nested dicts of tensors and plain values; loaded back with ``weights_only=True``.
        step: Number of finished steps.
        provenance: Configuration and hashes the state was made from, as JSON.
        keep: How many of the newest checkpoints stay.

    Returns:
        The checkpoint's file.

    Raises:
        OSError: If the disk is full; the checkpoints before it are untouched.
    """
    target = folder / f"step-{step:08d}.pt"
    for part in folder.glob(".step-*.part"):  # of a killed run; a run has one writer
        part.unlink(missing_ok=True)
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    with replace_whole(target) as beside:
        beside.write_bytes(buffer.getbuffer())
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    description = {"format": FORMAT, "step": step, "sha256": digest, "provenance": provenance}
    write_json_whole(target.with_suffix(".json"), description)
    for old in _steps(folder)[:-keep]:
        for suffix in (".json", ".pt"):
            (folder / f"step-{old:08d}{suffix}").unlink(missing_ok=True)
    return target


def load_newest_checkpoint(folder: Path) -> tuple[int, dict[str, Any], dict[str, Any]] | None:
    """Load the newest undamaged checkpoint; a damaged one is named in the log and passed over.

    Args:
        folder: ``RUN/checkpoints``; may be missing.

    Returns:
        Finished steps, the state, and its provenance; None if there is no checkpoint at all.

    Raises:
        CheckpointError: If there are checkpoints and every one is damaged.
    """
    steps = _steps(folder)
    for step in reversed(steps):
        path = folder / f"step-{step:08d}.pt"
        try:
            description, state = _verified(path)
        except CheckpointError as error:
            LOGGER.warning("%s; trying the checkpoint before it", error)
            continue
        return step, state, description["provenance"]
    if steps:
        message = "every checkpoint is damaged. Start a new run in another folder."
        raise CheckpointError(folder, message)
    return None


def _steps(folder: Path) -> list[int]:
    """Steps of the checkpoints that have a description, ascending."""
    found = (re.fullmatch(r"step-(\d{8})\.json", f.name) for f in folder.glob("step-*.json"))
    return sorted(int(match[1]) for match in found if match)


def _verified(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        description = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise CheckpointError(path, f"cannot be read: {error}") from error
    if description.get("format") != FORMAT:
        raise CheckpointError(path, f"needs format {FORMAT!r}; got {description.get('format')!r}")
    if hashlib.sha256(content).hexdigest() != description["sha256"]:
        raise CheckpointError(path, "is damaged: its bytes do not have the hash written beside it")
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointError(path, f"holds more than tensors and plain values: {error}") from error
    return description, state
