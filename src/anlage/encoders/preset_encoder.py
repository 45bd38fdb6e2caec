"""A published encoder on our transformer: its file converted strictly, transform and pooling."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anlage.encoders.encoder_sizes import EncoderSizes, encoder_sizes
from anlage.encoders.hub import cached_file, fetch_file, tell_licence
from anlage.encoders.precision import Precision
from anlage.encoders.presets import Preset
from anlage.encoders.published_names import PublishedWeights, in_our_names
from anlage.encoders.tile_encoder import EncoderConfig, TileEncoder, torch_device
from anlage.encoders.weight_files import read_weight_file, state_dict_of
from anlage.encoders.weights import Conversion, convert_weights
from anlage.errors import EncoderError
from anlage.models.vit import VisionTransformer
from anlage.models.without_weights import without_weights

LOGGER = logging.getLogger(__name__)
OURS_ALONE = {"mask_token"}


def preset_encoder(
    preset: Preset,
    *,
    file: Path | None = None,
    mpp: float | None = None,
    device: str | torch.device = "cpu",
    precision: Precision = "auto",
) -> TileEncoder:
    """Open a preset that runs on our transformer.

    Args:
        preset: Which.
        file: Its weight file; None for the one in the hub's cache, downloaded if it is not there.
        mpp: Resolution to use it at; None for its own.
        device: See ``TileEncoder``.
        precision: See ``TileEncoder``.

    Raises:
        EncoderError: If the weights cannot be had or are not exactly the preset's.
    """
    torch_device(device)  # refused before a download
    tell_licence(preset)
    origin: dict[str, Any] = {"file": str(file)}
    if file is None:
        found = cached_file(preset) or fetch_file(preset)
        file = found.path
        origin = {"file": found.file, "revision": found.revision}
    stored, _ = state_dict_of(read_weight_file(file), path=file)
    architecture, converted = preset_weights(preset, stored, path=file)
    with without_weights():
        model = VisionTransformer(**architecture)
    model.load_state_dict(converted.weights, strict=True, assign=True)
    config = preset_config(preset, architecture, mpp=mpp, notes=converted.notes, **origin)
    return TileEncoder(config, model, device=device, precision=precision)


def preset_config(
    preset: Preset, architecture: Mapping[str, Any], *, mpp: float | None, **origin: object
) -> EncoderConfig:
    """The description of a preset's encoder.

    Args:
        preset: Which.
        architecture: What runs.
        mpp: Resolution to use it at; None for its own. One that it was not trained at is marked.
        origin: More for its provenance: where its weights came from.
    """
    used = preset.mpp if mpp is None else mpp
    if preset.mpps and used not in preset.mpps:
        told = ", ".join(f"{each:g}" for each in preset.mpps)
        LOGGER.warning("%s: used at %g mpp, and was trained at %s", preset.name, used, told)
    facts = ("name", "repo", "licence", "gated", "verified", "mpps")
    provenance = preset.model_dump(mode="json", include=set(facts)) | origin
    return EncoderConfig(
        architecture=dict(architecture),
        tile_px=preset.tile_px,
        mpp=used,
        mean=preset.mean,
        std=preset.std,
        pooling=preset.pooling,
        provenance={"preset": provenance.pop("name"), **provenance},
    )


def preset_weights(
    preset: Preset, stored: Mapping[str, Tensor], *, path: str | Path
) -> tuple[dict[str, Any], Conversion]:
    """A published state dict as that of our transformer, refusing whatever is not the preset's.

    Args:
        preset: Which.
        stored: Tensors by their published names.
        path: Where they came from, for errors.

    Returns:
        Arguments of ``VisionTransformer``, and the weights; nothing was adapted, and nothing added
        but a mask token, which takes no part in an embedding.

    Raises:
        EncoderError: If a tensor is missing, unexpected, misshapen or not finite, or the weights
            are of another model.
    """
    named = in_our_names(stored, path=path)
    architecture = {**preset.architecture, "image_px": _grid_px(preset, named)}
    with without_weights():
        wanted = VisionTransformer(**architecture).state_dict()
    theirs = encoder_sizes(named.weights, path=path)
    _refuse_another_model(preset, theirs, encoder_sizes(wanted, path=path), path)
    missing = sorted(wanted.keys() - named.weights.keys() - OURS_ALONE)
    if missing:
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        msg = f"lacks tensor {missing[0]!r}{more}, which {preset.name} has. "
        raise EncoderError(path, msg + "Copy or download it again.")
    return architecture, convert_weights(stored, architecture, path=path)


def _grid_px(preset: Preset, named: PublishedWeights) -> int:
    """Image size of the positions in the file, where it is one of the preset's."""
    position = named.weights["pos_embed"]
    found = isqrt(position.shape[1]) * int(preset.architecture["patch_px"])
    return found if found in preset.grids_px else preset.grids_px[0]


def _refuse_another_model(
    preset: Preset, theirs: EncoderSizes, ours: EncoderSizes, path: str | Path
) -> None:
    for name in EncoderSizes.__slots__:
        found, asked = getattr(theirs, name), getattr(ours, name)
        if found != asked:
            msg = f"is of another model: it has {name} {found}, and {preset.name} {asked}. "
            raise EncoderError(path, msg + "Name the file of this encoder (`anlage encoders`).")
