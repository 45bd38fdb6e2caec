"""A network in a folder: ``model.safetensors`` and ``config.json``, whole, loaded strictly."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from anlage.encoders.bundled import CONFIG
from anlage.encoders.tile_encoder import weights_sha256
from anlage.errors import EncoderError
from anlage.folder_replacement import replace_folder
from anlage.models.without_weights import without_weights

WEIGHTS = "model.safetensors"
KINDS = {  # by the first part of a format
    "encoder": "a tile encoder",
    "slide-encoder": "a slide encoder",
    "slide-model": "a slide model",
}


class _Described(Protocol):
    """A pydantic model of a folder's ``config.json``, with a checksum of the weights in it."""

    @property
    def weights_sha256(self) -> str | None: ...
    def model_copy(self, *, update: Mapping[str, Any] | None = None) -> Self: ...
    def model_dump(self, *, mode: str) -> dict[str, Any]: ...


Read = TypeVar("Read")
Model = TypeVar("Model", bound=BaseModel)
Network = TypeVar("Network", bound=nn.Module)


def save_network(
    folder: str | Path,
    network: nn.Module,
    config: _Described,
    *,
    build: Callable[[], nn.Module],
    who: str,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a folder whole; a folder of that kind already there is replaced whole.

    Args:
        folder: Folder to make; it may be absent, empty, or such a folder.
        network: On any device.
        config: Its description; the checksum of the weights is filled in.
        build: Makes the network that the description means.
        who: Who saves, for errors of a programmer.
        dtype: What the weights are stored in; None for what the network has.

    Raises:
        EncoderError: If the folder holds anything else, or a weight is not finite.
        ValueError: If the network is not what ``build`` makes, or a weight has no value in
            ``dtype``.
    """
    _refuse_foreign_files(Path(folder))
    weights = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    faults = tensor_faults(weights, empty_network(folder, build).state_dict())
    if faults:
        msg = f"{who}: needs a model of the config's architecture; got {faults[0]}."
        raise ValueError(msg)
    refuse_not_finite(folder, weights)
    weights = {name: _stored_in(dtype, name, tensor, who) for name, tensor in weights.items()}
    filled = config.model_copy(update={"weights_sha256": weights_sha256(weights)})
    text = json.dumps(filled.model_dump(mode="json"), indent=2, allow_nan=False)
    with replace_folder(folder) as beside:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, beside / WEIGHTS)
        (beside / CONFIG).write_text(text + "\n", encoding="utf-8")


def read_config(path: Path, kind: type[Model], *, form: str) -> Model:
    """The description in a folder, refused unless it is of the form.

    Args:
        path: Its ``config.json``.
        kind: What it is read as.
        form: Format and version it must name.

    Raises:
        EncoderError: If it cannot be read, is of another format, or a key is unknown or wrong.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EncoderError(path, f"cannot be read ({error.strerror}). Save it again.") from error
    except ValueError as error:
        raise EncoderError(path, f"is not JSON ({error}). Save the encoder again.") from error
    found = stored.get("format") if isinstance(stored, dict) else None
    if found != form:
        msg = f"needs format {form!r}; got {found!r}. {_remedy(str(found), form)}"
        raise EncoderError(path, msg)
    try:
        return kind.model_validate(stored)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        msg = f"key {key!r}: {first['msg']}; got {first['input']!r}. Save the encoder again."
        raise EncoderError(path, msg) from error


def read_network(place: Path, *, checksum: str | None, build: Callable[[], Network]) -> Network:
    """The network of a folder with the weights beside its description, in float32.

    Args:
        place: The folder.
        checksum: The checksum that its description gives.
        build: Makes the network of its description.

    Raises:
        EncoderError: If a tensor is missing, unexpected, misshapen or not finite, or the checksum
            does not match.
    """
    weights = _read_weights(place / WEIGHTS)
    network = empty_network(place / CONFIG, build)
    faults = tensor_faults(weights, network.state_dict())
    if faults:
        told = "; ".join(faults[:3]) + (f"; and {len(faults) - 3} more" if faults[3:] else "")
        msg = f"does not fit the architecture in {CONFIG}: {told}. Save the encoder again."
        raise EncoderError(place / WEIGHTS, msg)
    refuse_not_finite(place / WEIGHTS, weights)
    if weights_sha256(weights) != checksum:
        msg = f"is not the one {CONFIG} was written with: damaged or mixed up. Save it again."
        raise EncoderError(place / WEIGHTS, msg)
    network.load_state_dict(weights, strict=True, assign=True)
    return network


def unless_replaced(place: Callable[[], Path], read: Callable[[], Read]) -> Read:
    """What ``read`` gives; it reads again where the folder was replaced while being read.

    Args:
        place: Says where the folder is now.
        read: Reads it; ``EncoderError`` where it cannot.
    """
    while True:
        before = _identity(place())
        try:
            return read()
        except EncoderError:
            if _identity(place()) == before:
                raise


def empty_network(path: str | Path, build: Callable[[], Network]) -> Network:
    """The network without memory for its weights, and without drawing random ones.

    Raises:
        EncoderError: If there is no network of that architecture; carries ``path``.
    """
    try:
        with without_weights():
            return build()
    except (TypeError, ValueError) as error:
        raise EncoderError(path, f"architecture: {error} Correct the configuration.") from error


def tensor_faults(found: Mapping[str, Tensor], wanted: Mapping[str, Any]) -> list[str]:
    """In what tensors are not those of a network: missing, unknown or misshapen."""
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    return [
        *(f"no tensor {name!r}" for name in wanted.keys() - shapes.keys()),
        *(f"an unknown tensor {name!r}" for name in shapes.keys() - wanted.keys()),
        *(
            f"tensor {name!r} of shape {shapes[name]} for {tuple(tensor.shape)}"
            for name, tensor in wanted.items()
            if name in shapes and shapes[name] != tuple(tensor.shape)
        ),
    ]


def refuse_not_finite(path: str | Path, weights: Mapping[str, Tensor]) -> None:
    """Refuse weights with NaN or an infinity in them.

    Raises:
        EncoderError: If there is one; carries ``path``.
    """
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            msg = f"tensor {name!r} holds NaN or an infinity. Use an earlier checkpoint."
            raise EncoderError(path, msg)


def _remedy(found: str, form: str) -> str:
    kind, wanted = found.partition("/")[0], form.partition("/")[0]
    if kind == wanted or kind not in KINDS:
        return "Open it with the anlage that wrote it."
    return f"It is {KINDS[kind]}; name the folder of {KINDS[wanted]}."


def _identity(place: Path) -> tuple[int, int] | None:
    try:
        seen = (place / CONFIG).stat()
    except OSError:
        return None
    return seen.st_ino, seen.st_mtime_ns


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        stored: Mapping[str, Tensor] = load_file(path)
    except FileNotFoundError as error:
        raise EncoderError(path, "is missing. Save or copy the encoder again.") from error
    except (OSError, RuntimeError, SafetensorError) as error:  # torch opens the file once more
        msg = f"is not a whole safetensors file ({error}). Save or copy the encoder again."
        raise EncoderError(path, msg) from error
    return {name: tensor.to(torch.float32, copy=True) for name, tensor in stored.items()}


def _stored_in(dtype: torch.dtype | None, name: str, tensor: Tensor, who: str) -> Tensor:
    """A finite tensor in another type, refused where that cannot hold it."""
    stored = tensor if dtype is None else tensor.to(dtype)
    if not stored.isfinite().all():
        msg = (
            f"{who}: needs a dtype that holds {float(tensor.abs().max()):g}, of tensor "
            f"{name!r}; got {dtype}. Leave it out, or take torch.bfloat16."
        )
        raise ValueError(msg)
    return stored


def _refuse_foreign_files(folder: Path) -> None:
    """Replacing a folder removes what is in it, so it may hold nothing but a network."""
    if folder.exists() and not folder.is_dir():
        raise EncoderError(folder, "is a file. Name a folder.")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    foreign = sorted(names - {CONFIG, WEIGHTS})
    if foreign:
        msg = f"needs an empty or an encoder folder; it holds {foreign[0]!r}. Name another folder."
        raise EncoderError(folder, msg)
