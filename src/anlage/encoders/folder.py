"""The encoder folder: ``model.safetensors`` and ``config.json``, whole, loaded strictly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from anlage.encoders.bundled import BUNDLED, CONFIG, encoder_folder
from anlage.encoders.precision import Precision
from anlage.encoders.tile_encoder import FORMAT, EncoderConfig, TileEncoder, weights_sha256
from anlage.errors import EncoderError
from anlage.folder_replacement import replace_folder
from anlage.models.vit import VisionTransformer
from anlage.models.without_weights import without_weights

__all__ = ["CONFIG", "EncoderConfig", "TileEncoder", "load_encoder", "save_encoder"]

WEIGHTS = "model.safetensors"


def save_encoder(
    folder: str | Path,
    model: VisionTransformer,
    config: EncoderConfig,
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Write an encoder folder whole; an encoder already there is replaced whole.

    Args:
        folder: Folder to make; it may be absent, empty, or an encoder folder.
        model: Transformer, on any device.
        config: Its description; the checksum of the weights is filled in.
        dtype: What the weights are stored in, such as ``torch.float16`` for half the size; None for
            what the model has. They are loaded in float32 whatever it is.

    Raises:
        EncoderError: If the folder holds anything else, or a weight is not finite.
        ValueError: If the model is not of ``config.architecture``, or a weight has no value in
            ``dtype``.
    """
    _refuse_foreign_files(Path(folder))
    weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    faults = _faults(weights, _empty_model(folder, config).state_dict())
    if faults:
        msg = f"save_encoder: needs a model of the config's architecture; got {faults[0]}."
        raise ValueError(msg)
    _refuse_not_finite(folder, weights)
    weights = {name: _stored_in(dtype, name, tensor) for name, tensor in weights.items()}
    filled = config.model_copy(update={"weights_sha256": weights_sha256(weights)})
    text = json.dumps(filled.model_dump(mode="json"), indent=2, allow_nan=False)
    with replace_folder(folder) as beside:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, beside / WEIGHTS)
        (beside / CONFIG).write_text(text + "\n", encoding="utf-8")


def load_encoder(
    folder: str | Path, *, device: str | torch.device = "cpu", precision: Precision = "auto"
) -> TileEncoder:
    """Open an encoder folder, refusing whatever is not exactly what it says.

    Args:
        folder: A folder that ``save_encoder`` wrote, such as ``RUN/encoder``; or the name of an
            encoder that comes with anlage (``BUNDLED``).
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``.
        precision: See ``TileEncoder``.

    Returns:
        The encoder in evaluation mode, weights in float32. No random number is drawn.

    Raises:
        EncoderError: If a file is missing, cut short or of another version, a key is unknown, a
            tensor is missing, unexpected, misshapen or not finite, or the checksum does not match.
    """
    while True:
        before = _identity(folder)
        try:
            config, model = _load(folder)
        except EncoderError:
            if _identity(folder) == before:
                raise
            continue  # it was replaced while being read
        return TileEncoder(config, model, device=device, precision=precision)


def _identity(folder: str | Path) -> tuple[int, int] | None:
    try:
        seen = (encoder_folder(folder) / CONFIG).stat()
    except OSError:
        return None
    return seen.st_ino, seen.st_mtime_ns


def _load(folder: str | Path) -> tuple[EncoderConfig, VisionTransformer]:
    place = encoder_folder(folder)
    if not place.is_dir():
        names = ", ".join(BUNDLED)
        msg = f"no such encoder folder. Name one such as RUN/encoder, or one of: {names}."
        raise EncoderError(folder, msg)
    if not (place / CONFIG).exists():
        raise EncoderError(folder, _without_config(place))
    config = _read_config(place / CONFIG)
    if config.pooling == "own":
        msg = "is of a network that is not anlage's. Name that by timm:, hf: or its function."
        raise EncoderError(place / CONFIG, msg)
    weights = _read_weights(place / WEIGHTS)
    model = _empty_model(place / CONFIG, config)
    faults = _faults(weights, model.state_dict())
    if faults:
        told = "; ".join(faults[:3]) + (f"; and {len(faults) - 3} more" if faults[3:] else "")
        msg = f"does not fit the architecture in {CONFIG}: {told}. Save the encoder again."
        raise EncoderError(place / WEIGHTS, msg)
    _refuse_not_finite(place / WEIGHTS, weights)
    if weights_sha256(weights) != config.weights_sha256:
        msg = f"is not the one {CONFIG} was written with: damaged or mixed up. Save it again."
        raise EncoderError(place / WEIGHTS, msg)
    model.load_state_dict(weights, strict=True, assign=True)
    return config, model


def _without_config(place: Path) -> str:
    if (place / "encoder" / CONFIG).exists():
        return f"is a run, not its encoder. Name {place / 'encoder'}."
    return f"holds no {CONFIG}. Name a whole encoder folder, such as RUN/encoder."


def _read_config(path: Path) -> EncoderConfig:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EncoderError(path, f"cannot be read ({error.strerror}). Save it again.") from error
    except ValueError as error:
        raise EncoderError(path, f"is not JSON ({error}). Save the encoder again.") from error
    found = stored.get("format") if isinstance(stored, dict) else None
    if found != FORMAT:
        msg = f"needs format {FORMAT!r}; got {found!r}. Open it with the anlage that wrote it."
        raise EncoderError(path, msg)
    try:
        return EncoderConfig.model_validate(stored)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        msg = f"key {key!r}: {first['msg']}; got {first['input']!r}. Save the encoder again."
        raise EncoderError(path, msg) from error


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        stored: Mapping[str, Tensor] = load_file(path)
    except FileNotFoundError as error:
        raise EncoderError(path, "is missing. Save or copy the encoder again.") from error
    except (OSError, RuntimeError, SafetensorError) as error:  # torch opens the file once more
        msg = f"is not a whole safetensors file ({error}). Save or copy the encoder again."
        raise EncoderError(path, msg) from error
    return {name: tensor.to(torch.float32, copy=True) for name, tensor in stored.items()}


def _empty_model(path: str | Path, config: EncoderConfig) -> VisionTransformer:
    """The architecture without memory for its weights, and without drawing random ones."""
    try:
        with without_weights():
            return VisionTransformer(**config.architecture)
    except (TypeError, ValueError) as error:
        raise EncoderError(path, f"architecture: {error} Correct the configuration.") from error


def _faults(found: Mapping[str, Tensor], wanted: Mapping[str, Any]) -> list[str]:
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


def _refuse_not_finite(path: str | Path, weights: Mapping[str, Tensor]) -> None:
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            msg = f"tensor {name!r} holds NaN or an infinity. Use an earlier checkpoint."
            raise EncoderError(path, msg)


def _stored_in(dtype: torch.dtype | None, name: str, tensor: Tensor) -> Tensor:
    """A finite tensor in another type, refused where that cannot hold it."""
    stored = tensor if dtype is None else tensor.to(dtype)
    if not stored.isfinite().all():
        msg = (
            f"save_encoder: needs a dtype that holds {float(tensor.abs().max()):g}, of tensor "
            f"{name!r}; got {dtype}. Leave it out, or take torch.bfloat16."
        )
        raise ValueError(msg)
    return stored


def _refuse_foreign_files(folder: Path) -> None:
    """Replacing a folder removes what is in it, so it may hold nothing but an encoder."""
    if folder.exists() and not folder.is_dir():
        raise EncoderError(folder, "is a file. Name a folder.")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    foreign = sorted(names - {CONFIG, WEIGHTS})
    if foreign:
        msg = f"needs an empty or an encoder folder; it holds {foreign[0]!r}. Name another folder."
        raise EncoderError(folder, msg)
