"""Weight files of others: safetensors and torch files, read without running what is in them."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from anlage.errors import EncoderError

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
PLACES = ("teacher", "state_dict", "model", "model_state_dict", "student")


def read_weight_file(path: str | Path) -> Mapping[str, Any]:
    """What a weight file holds: tensors by name, or dicts of them and plain values.

    Torch files are read with ``weights_only=True`` alone, so that no code in them runs, and mapped
    into memory, so that an optimiser's state beside the weights costs nothing.

    Args:
        path: A ``.safetensors``, ``.pth``, ``.pt`` or ``.bin`` file.

    Returns:
        The content as stored; tensors lie on the CPU and may belong to the file.

    Raises:
        EncoderError: If the file is missing, cut short, of another kind, or holds more than
            tensors and plain values.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        msg = f"needs a name that ends in {', '.join(SUFFIXES)}. Name a weight file."
        raise EncoderError(path, msg)
    if not path.is_file():
        raise EncoderError(path, "no such weight file. Name a file or an encoder folder.")
    stored = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if not isinstance(stored, Mapping):
        kind = type(stored).__name__
        raise EncoderError(path, f"needs a dict of tensors; it holds a {kind}. Save a state dict.")
    return stored


def state_dict_of(stored: Mapping[str, Any], *, path: str | Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of a weight file, and under which key of it they lie.

    Args:
        stored: As ``read_weight_file`` gives it.
        path: Where it came from, for the error.

    Returns:
        Tensors by name; and the key (``teacher`` before the others), empty for the whole file.

    Raises:
        EncoderError: If there is no state dict.
    """
    place = next((key for key in PLACES if isinstance(stored.get(key), Mapping)), "")
    inside = stored[place] if place else stored
    strangers = [name for name, value in inside.items() if not isinstance(value, Tensor)]
    if strangers or not inside:
        found = f"{strangers[0]!r}, which is no tensor" if strangers else "nothing"
        msg = (
            f"needs tensors by name, as they are or under {', '.join(PLACES)}; it holds {found}. "
            "Save the state dict of the encoder alone."
        )
        raise EncoderError(path, msg)
    return dict(inside), place


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def as_float32(weights: Mapping[str, Tensor], *, path: str | Path) -> dict[str, Tensor]:
    """Copies in float32, each of them finite.

    Args:
        weights: Tensors by name, of any floating dtype.
        path: Where they came from, for the error.

    Raises:
        EncoderError: If a tensor is not of a floating dtype, or holds NaN or an infinity.
    """
    copies = {}
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            msg = (
                f"tensor {name!r} needs a floating dtype; got {tensor.dtype}. Save it unquantised."
            )
            raise EncoderError(path, msg)
        copies[name] = tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
        if not torch.isfinite(copies[name]).all():
            msg = f"tensor {name!r} holds NaN or an infinity. Use an earlier checkpoint."
            raise EncoderError(path, msg)
    return copies


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except Exception as error:
        msg = f"is not a whole safetensors file ({error}). Copy or download it again."
        raise EncoderError(path, msg) from error
    return tensors


def _read_torch(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    try:
        return torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except Exception as error:  # of ten kinds for a damaged file
        foreign = re.search(r"(?i:unsupported)(?: global:)? GLOBAL (\S+)", str(error))
        raise EncoderError(path, _refusal(foreign[1] if foreign else None, error)) from error


def _refusal(foreign: str | None, error: Exception) -> str:
    if foreign is None:
        told = str(error).rpartition("WeightsUnpickler error: ")[2].strip()
        reason = told.splitlines()[0][:80] if " " in told else type(error).__name__
        return f"is not a whole torch file ({reason}). Copy or download it again."
    if "shard" in foreign.lower() or "DTensor" in foreign:
        return sharded_refusal(foreign)
    return (
        f"holds a {foreign} beside tensors, and opening that could run code of whoever made it. "
        "Where you trust it, save its state dict alone with torch.save and name that file."
    )


def sharded_refusal(found: str) -> str:
    """Message for a file that holds one rank's part of the weights."""
    return (
        f"is one rank's part of a sharded run (it holds {found}). "
        "Gather it in the code that wrote it (dinov2 writes eval/*/teacher_checkpoint.pth at each "
        "evaluation; FSDP gathers with StateDictType.FULL_STATE_DICT) and name that file."
    )
