"""Strict conversion of published weights to our vision transformer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anlage.encoders.adapt import adapt_patch_projection, adapt_position_grid
from anlage.encoders.encoder_sizes import EncoderSizes, encoder_sizes, mlp_ratio_of
from anlage.encoders.published_names import in_our_names
from anlage.encoders.weight_files import as_float32
from anlage.errors import EncoderError
from anlage.models.vit import VisionTransformer
from anlage.models.without_weights import without_weights

MUST_EQUAL = ("width", "depth", "n_registers", "feed_forward", "hidden")


class Conversion(NamedTuple):
    """Weights for one architecture, and how they differ from the published ones.

    Attributes:
        weights: The whole state dict of the ``VisionTransformer``, float32, on the CPU.
        notes: What was left out, folded, adapted or added, a sentence each.
    """

    weights: dict[str, Tensor]
    notes: tuple[str, ...]


def convert_state_dict(
    weights: Mapping[str, Tensor],
    architecture: Mapping[str, Any],
    *,
    path: str | Path = "state dict",
) -> dict[str, Tensor]:
    """The weights of ``convert_weights``, without its notes."""
    return convert_weights(weights, architecture, path=path).weights


def convert_weights(
    weights: Mapping[str, Tensor],
    architecture: Mapping[str, Any],
    *,
    path: str | Path = "state dict",
) -> Conversion:
    """Published weights as the state dict of our ``VisionTransformer``; nothing is lost unsaid.

    Every tensor is used, or left out for a reason that the notes state. Only what we alone have
    may be missing: the mask token becomes zero, a missing bias of queries, keys and values zero,
    norms (dual patch norm, QK norm) as new. Patch size and position grid are adapted; every other
    difference of architecture is refused.

    Args:
        weights: Tensors by their names in timm, dinov2's hub or training code, DINO or anlage,
            under any prefix.
        architecture: Keyword arguments of ``VisionTransformer``.
        path: Where the weights came from; errors carry it.

    Returns:
        Weights and notes.

    Raises:
        EncoderError: If a tensor is unknown, missing, misshapen or not finite, or the weights are
            of another architecture.
        ValueError: If ``architecture`` is none.
    """
    with without_weights():
        wanted = VisionTransformer(**architecture).state_dict()
    named = in_our_names(weights, path=path)
    found = as_float32(named.weights, path=path)
    theirs, ours = encoder_sizes(found, path=path), encoder_sizes(wanted, path=path)
    _refuse_other_sizes(theirs, ours, path)
    notes = [*named.notes, *_adapt(found, theirs, ours), *_fill(found, wanted, theirs)]
    _refuse_misfits(found, wanted, path)
    return Conversion({name: found[name] for name in wanted}, tuple(notes))


def _refuse_other_sizes(theirs: EncoderSizes, ours: EncoderSizes, path: str | Path) -> None:
    for name in MUST_EQUAL:
        found, asked = getattr(theirs, name), getattr(ours, name)
        if found != asked:
            is_hidden = name == "hidden"
            key, value = ("mlp_ratio", mlp_ratio_of(theirs, path)) if is_hidden else (name, found)
            msg = f"has {name} {found!r}, and this architecture {asked!r}. "
            raise EncoderError(path, msg + f"Set model.{key} to {value}, or start elsewhere.")
    if ours.has_layer_scale and not theirs.has_layer_scale:
        msg = "has no LayerScale, and the first gains of this architecture would mute its blocks. "
        raise EncoderError(path, msg + "Set model.layer_scale to null.")
    if theirs.has_layer_scale and not ours.has_layer_scale:
        msg = "has LayerScale, and this architecture none. Set model.layer_scale to 1.0e-5."
        raise EncoderError(path, msg)
    for name in ("qk_norm", "dual_patch_norm"):
        if getattr(theirs, f"has_{name}") and not getattr(ours, f"has_{name}"):
            msg = f"has {name}, and this architecture not. Set model.{name} to true."
            raise EncoderError(path, msg)
    if theirs.has_dual_patch_norm and theirs.patch_px != ours.patch_px:
        msg = (
            f"normalises patches of {theirs.patch_px} px pixel by pixel, which cannot be adapted "
            f"to {ours.patch_px} px. Set model.patch_px to {theirs.patch_px}."
        )
        raise EncoderError(path, msg)


def _adapt(found: dict[str, Tensor], theirs: EncoderSizes, ours: EncoderSizes) -> list[str]:
    """Bring patch size and position grid to ours, in place; what was done."""
    notes = []
    if theirs.patch_px != ours.patch_px:
        name = "patch_embed.proj.weight"
        found[name] = adapt_patch_projection(found[name], patch_px=ours.patch_px)
        notes.append(f"Adapted the patch projection from {theirs.patch_px} to {ours.patch_px} px.")
    if theirs.grid != ours.grid:
        found["pos_embed"] = adapt_position_grid(found["pos_embed"], to_grid=ours.grid)
        old, new = (f"{grid[0]} x {grid[1]}" for grid in (theirs.grid, ours.grid))
        notes.append(f"Adapted the position grid from {old} to {new} patches.")
    return notes


def _fill(
    found: dict[str, Tensor], wanted: Mapping[str, Tensor], theirs: EncoderSizes
) -> list[str]:
    """Add what we alone have, in place; what was added."""
    notes = []
    if "mask_token" not in found:
        found["mask_token"] = torch.zeros(wanted["mask_token"].shape)
        notes.append("Added a mask token of zeros.")
    biases = {name for name in wanted if name.endswith(".attn.qkv.bias")}
    if not biases & found.keys():
        found |= {name: torch.zeros(wanted[name].shape) for name in biases}
        notes.append("Added biases of zero for queries, keys and values: the same function.")
    for label, part, has in (
        ("QK norms", ("attn.q_norm.", "attn.k_norm."), theirs.has_qk_norm),
        (
            "dual patch norms",
            ("patch_embed.norm_in.", "patch_embed.norm."),
            theirs.has_dual_patch_norm,
        ),
    ):
        new = {n for n in wanted.keys() - found.keys() if any(p in n for p in part)}
        if new and not has:
            found |= {n: torch.full(wanted[n].shape, float(n.endswith("weight"))) for n in new}
            notes.append(f"Added new {label}, which change what the encoder computes.")
    return notes


def _refuse_misfits(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: str | Path
) -> None:
    misfits = [
        *(f"no tensor {name!r}" for name in sorted(wanted.keys() - found.keys())),
        *(f"an unknown tensor {name!r}" for name in sorted(found.keys() - wanted.keys())),
        *(
            f"tensor {name!r} of shape {tuple(found[name].shape)} for {tuple(tensor.shape)}"
            for name, tensor in wanted.items()
            if name in found and found[name].shape != tensor.shape
        ),
    ]
    if misfits:
        told = "; ".join(misfits[:3]) + (f"; and {len(misfits) - 3} more" if misfits[3:] else "")
        msg = f"does not fit this architecture: {told}. Choose another encoder or architecture."
        raise EncoderError(path, msg)
