"""The encoder folder: ``model.safetensors`` and ``config.json``, whole, loaded strictly."""

from __future__ import annotations

from pathlib import Path

import torch

from anlage.encoders.bundled import BUNDLED, CONFIG, encoder_folder
from anlage.encoders.network_folder import (
    WEIGHTS,
    read_config,
    read_network,
    save_network,
    unless_replaced,
)
from anlage.encoders.precision import Precision
from anlage.encoders.tile_encoder import FORMAT, EncoderConfig, TileEncoder
from anlage.errors import EncoderError
from anlage.models.vit import VisionTransformer

__all__ = ["CONFIG", "WEIGHTS", "EncoderConfig", "TileEncoder", "load_encoder", "save_encoder"]


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
    save_network(
        folder,
        model,
        config,
        build=lambda: VisionTransformer(**config.architecture),
        who="save_encoder",
        dtype=dtype,
    )


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
    config, model = unless_replaced(lambda: encoder_folder(folder), lambda: _load(folder))
    return TileEncoder(config, model, device=device, precision=precision)


def _load(folder: str | Path) -> tuple[EncoderConfig, VisionTransformer]:
    place = encoder_folder(folder)
    if not place.is_dir():
        names = ", ".join(BUNDLED)
        msg = f"no such encoder folder. Name one such as RUN/encoder, or one of: {names}."
        raise EncoderError(folder, msg)
    if not (place / CONFIG).exists():
        raise EncoderError(folder, _without_config(place))
    config = read_config(place / CONFIG, EncoderConfig, form=FORMAT)
    if config.pooling == "own":
        msg = "is of a network that is not anlage's. Name that by timm:, hf: or its function."
        raise EncoderError(place / CONFIG, msg)
    model = read_network(
        place,
        checksum=config.weights_sha256,
        build=lambda: VisionTransformer(**config.architecture),
    )
    return config, model


def _without_config(place: Path) -> str:
    if (place / "encoder" / CONFIG).exists():
        return f"is a run, not its encoder. Name {place / 'encoder'}."
    return f"holds no {CONFIG}. Name a whole encoder folder, such as RUN/encoder."
