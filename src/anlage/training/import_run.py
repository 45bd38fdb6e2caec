"""A checkpoint of dinov2's own training as a run folder of ours, to go on training from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anlage.encoders.folder import EncoderConfig, save_encoder
from anlage.encoders.imported_run import ImportedHead, ImportedNetwork, read_dinov2_checkpoint
from anlage.errors import CheckpointError
from anlage.training.checkpoint_writer import CheckpointWriter
from anlage.training.network_config import Architecture, Head
from anlage.training.networks import EncoderWithHeads
from anlage.training.run_record import refuse_existing_run

FORMAT = "imported-run/1"
CENTERS = {"cls": "dino", "patch": "ibot"}


def import_run(
    checkpoint: Path,
    run_dir: Path,
    *,
    mpp: float,
    tile_px: int = 224,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    n_heads: int | None = None,
) -> tuple[str, ...]:
    """Write student and teacher of a dinov2 checkpoint, with their heads, as a run folder.

    ``RUN/checkpoints`` holds both for ``init.run`` or ``distill.run``; ``RUN/encoder`` is the
    teacher. Optimiser state and data order are not taken over: a new run begins with them.

    Args:
        checkpoint: ``teacher_checkpoint.pth`` or a whole training checkpoint.
        run_dir: Folder to make; it may hold no run.
        mpp: Resolution it was trained at, micrometres per pixel, which the file does not say.
        tile_px: Edge of the tiles it embeds.
        mean: Channel means it was trained with.
        std: Channel deviations it was trained with.
        n_heads: Attention heads; None for heads 64 wide, as dinov2's.

    Returns:
        What was left out, folded or added, a sentence each.

    Raises:
        EncoderError: If the file is no whole dinov2 checkpoint.
        CheckpointError: If the folder holds a run, the heads are of a shape that ours are not, or
            patches do not fill a tile.
        ValueError: If a deviation is not above 0.
    """
    _refuse_used_folder(run_dir)
    found = read_dinov2_checkpoint(checkpoint, n_heads=n_heads)
    network = found.teacher or found.student
    assert network is not None, "a checkpoint holds one of the two"
    architecture = Architecture.model_validate(found.architecture)
    if tile_px % architecture.patch_px:
        msg = f"has patches of {architecture.patch_px} px, which do not fill tiles of {tile_px}. "
        raise CheckpointError(checkpoint, msg + "Give a tile_px that they fill.")
    head = _sizes(checkpoint, network.dino_head)
    patch_head = None if network.ibot_head is None else _sizes(checkpoint, network.ibot_head)
    config = {
        "model": architecture.model_dump(mode="json"),
        "head": head.model_dump(mode="json"),
        "patch_head": None if patch_head is None else patch_head.model_dump(mode="json"),
        "mean": mean,
        "std": std,
    }
    step = 0 if found.iteration is None else found.iteration + 1
    provenance = {"format": FORMAT, "config": config, "imported": found.provenance}
    weights = _weights(network)
    holder = EncoderWithHeads(architecture, head, patch_head)
    holder.load_state_dict(weights)
    state = {
        "student": weights if found.student is None else _weights(found.student),
        "teacher": weights,
        "centers": _centers(found.centers, network),
    }
    described = EncoderConfig(
        architecture=architecture.model_dump(),
        tile_px=tile_px,
        mpp=mpp,
        mean=mean,
        std=std,
        provenance=provenance,
    )
    save_encoder(run_dir / "encoder", holder.encoder, described)
    with CheckpointWriter(run_dir / "checkpoints", keep=1) as writer:
        writer.save(state, step=step, provenance=provenance)
    return found.notes


def _refuse_used_folder(run_dir: Path) -> None:
    refuse_existing_run(run_dir)
    if (run_dir / "encoder").exists():
        raise CheckpointError(run_dir, "holds an encoder already. Name another folder.")


def _sizes(checkpoint: Path, head: ImportedHead) -> Head:
    if head.sizes["n_layers"] != 3:
        msg = f"has heads of {head.sizes['n_layers']} layers; ours have 3. It cannot go on here."
        raise CheckpointError(checkpoint, msg)
    known = Head.model_fields
    return Head.model_validate({k: v for k, v in head.sizes.items() if k in known})


def _weights(network: ImportedNetwork) -> dict[str, Tensor]:
    parts: dict[str, Mapping[str, Tensor]] = {
        "encoder": network.encoder,
        "head": network.dino_head.weights,
    }
    if network.ibot_head is not None:
        parts["patch_head"] = network.ibot_head.weights
    return {
        f"{part}.{name}": tensor for part, state in parts.items() for name, tensor in state.items()
    }


def _centers(stored: Mapping[str, Tensor], network: ImportedNetwork) -> dict[str, Any]:
    heads = {"cls": network.dino_head, "patch": network.ibot_head or network.dino_head}
    return {
        name: stored.get(CENTERS[name], torch.zeros(head.sizes["n_prototypes"]))
        for name, head in heads.items()
    }
