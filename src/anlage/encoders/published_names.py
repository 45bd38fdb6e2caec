"""Names of published weights in our own words.

Understands timm's vision transformers, dinov2's hub and training names, DINO's, and transformers'
ViTModel, Dinov2Model and Dinov2WithRegistersModel.
Shape suffixes: R register tokens, N patches, D width.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import isqrt
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from anlage.encoders.transformers_names import from_transformers, is_of_transformers
from anlage.errors import EncoderError

WRAPPERS = re.compile(
    r"(?:(?<=\.)|^)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
RENAMED = (
    (re.compile(r"^blocks\.\d+\.(\d+)\."), r"blocks.\1."),  # chunks hold the block's own number
    (re.compile(r"\.mlp\.w12\."), ".mlp.fc1."),
    (re.compile(r"\.mlp\.w3\."), ".mlp.fc2."),
    (re.compile(r"^register_tokens$"), "reg_token"),
)
PROJECTION = "the projection heads of its pretraining"
LEFT_OUT = (
    (re.compile(r"^(?:student\.|teacher\.)?(?:dino_head|ibot_head)\."), PROJECTION),
    (re.compile(r"^(?:student\.|teacher\.)?head\.(?:mlp|last_layer)\."), PROJECTION),
    (re.compile(r"^head\.(?:weight|bias)$"), "its classifier"),
    (re.compile(r"^(?:dino_loss|ibot_patch_loss|koleo_loss)\."), "state of its losses"),
    (re.compile(r"^student\."), "its student, since its teacher is taken"),
)


class PublishedWeights(NamedTuple):
    """The encoder's tensors of a state dict, and what became of the others.

    Attributes:
        weights: Tensors in our names, values as they were; positions for the patches alone.
        notes: What was left out and what was folded, a sentence each.
    """

    weights: dict[str, Tensor]
    notes: tuple[str, ...]


def in_our_names(weights: Mapping[str, Tensor], *, path: str | Path) -> PublishedWeights:
    """The encoder of a published state dict in our names; every tensor is used or accounted for.

    Args:
        weights: Tensors by their published names.
        path: Where they came from, for errors.

    Returns:
        The encoder's tensors, and what was left out for which reason.

    Raises:
        EncoderError: If no encoder with a class token is found, several are and none is the
            teacher's, two tensors want one name, a tensor outside the encoder is unknown, or
            tokens and positions do not fit.
    """
    if is_of_transformers(weights):
        weights = from_transformers(weights, path=path)
    plain = _unique(((without_wrappers(name), name) for name in weights), path)
    prefix = _prefix(plain, path)
    found: dict[str, str] = {}
    reasons: dict[str, list[str]] = {}
    for name, original in plain.items():
        inside = name.startswith(prefix)
        reason = _reason(name.removeprefix(prefix) if inside else name)
        if reason is not None:
            reasons.setdefault(reason, []).append(original)
        elif inside:
            found[name.removeprefix(prefix)] = original
        else:
            msg = (
                f"holds {original!r} beside the encoder's {prefix}*, for which anlage has no use. "
            )
            raise EncoderError(path, msg + "Save the state dict of the encoder alone.")
    ours = _unique(((_renamed(name), original) for name, original in found.items()), path)
    tensors, folded = _fold_positions({name: weights[ours[name]] for name in ours}, path)
    notes = [f"Left out {_listed(names)}: {reason}." for reason, names in reasons.items()]
    return PublishedWeights(tensors, (*notes, *folded))


def without_wrappers(name: str) -> str:
    """A parameter's name without what DDP, FSDP, checkpointing and compilation put into it."""
    return WRAPPERS.sub("", name)


def _renamed(name: str) -> str:
    for pattern, ours in RENAMED:
        name = pattern.sub(ours, name)
    return name


def _unique(pairs: Iterable[tuple[str, str]], path: str | Path) -> dict[str, str]:
    """Our name to the published one, refusing two tensors for one name."""
    unique: dict[str, str] = {}
    for name, original in pairs:
        if name in unique:
            msg = f"tensors {unique[name]!r} and {original!r} both stand for {name!r}. "
            raise EncoderError(path, msg + "Save the state dict of one encoder alone.")
        unique[name] = original
    return unique


def _prefix(names: Iterable[str], path: str | Path) -> str:
    """What stands before the encoder's own names."""
    ends = [name.removesuffix("cls_token") for name in names if name.endswith("cls_token")]
    prefixes = [prefix for prefix in ends if not prefix or prefix.endswith(".")]
    teachers = [prefix for prefix in prefixes if prefix.startswith("teacher.")]
    chosen = prefixes if len(prefixes) == 1 else teachers
    if len(chosen) != 1:
        found = f"{len(prefixes)} of them" if prefixes else "none"
        msg = (
            f"needs one vision transformer with a cls_token; found {found}. "
            "Save the state dict of one such encoder alone."
        )
        raise EncoderError(path, msg)
    return chosen[0]


def _reason(name: str) -> str | None:
    return next((reason for pattern, reason in LEFT_OUT if pattern.search(name)), None)


def _fold_positions(
    tensors: dict[str, Tensor], path: str | Path
) -> tuple[dict[str, Tensor], list[str]]:
    """Add positions of class and register tokens to these, where we have none: the same sum."""
    position = tensors.get("pos_embed")
    if position is None or position.ndim != 3:
        msg = "needs a learned pos_embed of shape (1, N, D); got "
        msg += "none" if position is None else f"shape {tuple(position.shape)}"
        raise EncoderError(path, msg + ". Rotary and relative positions cannot be converted.")
    for name in ("cls_token", "reg_token"):  # a sum would spread a shorter one
        tensor = tensors.get(name)
        if tensor is not None and (tensor.ndim != 3 or tensor.shape[::2] != position.shape[::2]):
            msg = f"tensor {name!r} needs {position.shape[2]} values a token, as pos_embed; got "
            msg += f"shape {tuple(tensor.shape)}. Choose a vision transformer of timm or DINOv2."
            raise EncoderError(path, msg)
    n_registers = tensors["reg_token"].shape[1] if "reg_token" in tensors else 0
    n_lead = _n_lead(position.shape[1], n_registers)
    if n_lead is None:
        msg = (
            f"needs positions of a square patch grid; got {position.shape[1]} of them. "
            "Encoders of oblong images cannot be converted."
        )
        raise EncoderError(path, msg)
    if n_lead == 0:
        return tensors, []
    lead_1RD = position[:, :n_lead].float()
    folded = {"pos_embed": position[:, n_lead:]}
    folded["cls_token"] = tensors["cls_token"].float() + lead_1RD[:, :1]
    if n_lead > 1:
        folded["reg_token"] = tensors["reg_token"].float() + lead_1RD[:, 1:]
    note = "Folded the position of the class token into it: the same sum."
    return tensors | folded, [note]


def _n_lead(n_positions: int, n_registers: int) -> int | None:
    """How many positions come before those of a square grid of patches."""
    for n_lead in (1, 0, 1 + n_registers):
        n_patches = n_positions - n_lead
        if n_patches > 0 and isqrt(n_patches) ** 2 == n_patches:
            return n_lead
    return None


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
