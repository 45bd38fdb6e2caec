"""The one door to slide encoders: a folder, a published name, a published name with its file."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

import torch

from anlage.encoders.bundled import BUNDLED, CONFIG
from anlage.encoders.hub import cached_file, fetch_file, tell_licence
from anlage.encoders.precision import Precision
from anlage.encoders.presets import PRESETS
from anlage.encoders.slide_encoder import (
    OpenSlideEncoder,
    SlideEncoderConfig,
    load_slide_encoder,
)
from anlage.encoders.slide_presets import SLIDE_PRESETS, SlidePreset
from anlage.encoders.slide_weights import convert_slide_weights
from anlage.encoders.tile_encoder import torch_device
from anlage.encoders.weight_files import (
    SUFFIXES,
    file_sha256,
    read_weight_file,
    state_dict_of,
)
from anlage.errors import EncoderError
from anlage.folder_replacement import whole_folder
from anlage.models.slide_encoder import SlideEncoder
from anlage.models.without_weights import without_weights


def open_slide_encoder(
    named: str | Path,
    *,
    device: str | torch.device = "cpu",
    precision: Precision = "auto",
) -> OpenSlideEncoder:
    """Open any slide encoder by what a user types.

    Args:
        named: A folder, such as ``RUN/encoder``; a published one (``SLIDE_PRESETS``), such as
            ``prov-gigapath-slide``; or one with its weight file, ``prov-gigapath-slide=FILE``.
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``.
        precision: As of a ``TileEncoder``.

    Returns:
        The encoder, in evaluation mode.

    Raises:
        EncoderError: If nothing is of that name, or it cannot be had or loaded whole; the text
            says what to do.
        DeviceError: If there is no such device here.
        ValueError: If the device cannot compute in the precision asked for.
    """
    text = str(named)
    name, _, file = text.partition("=")
    preset = SLIDE_PRESETS.get(name)
    if text and _is_folder(text, preset):
        return load_slide_encoder(text, device=device, precision=precision)
    if preset is None:
        raise EncoderError(text or repr(text), _unknown(text))
    torch_device(device)  # refused before a download
    tell_licence(preset)
    config, network = published_slide_encoder(preset, file=Path(file) if file else None)
    return OpenSlideEncoder(text, config, network, device=device, precision=precision)


def published_slide_encoder(
    preset: SlidePreset, *, file: Path | None = None
) -> tuple[SlideEncoderConfig, SlideEncoder]:
    """A preset's description and network, converted from its weight file.

    Args:
        preset: Which.
        file: Its weight file; None for the one in the hub's cache, downloaded if it is not there.

    Raises:
        EncoderError: If the weights cannot be had or are not exactly the preset's.
    """
    origin: dict[str, str | None]
    if file is None:
        found = cached_file(preset) or fetch_file(preset)
        file = found.path
        origin = {"file": found.file, "revision": found.revision}
    else:
        origin = {"file": file.name}
    stored, _ = state_dict_of(read_weight_file(file), path=file)
    converted = convert_slide_weights(stored, preset.architecture, path=file)
    with without_weights():
        network = SlideEncoder(**preset.architecture)
    network.load_state_dict(converted.weights, strict=True, assign=True)
    if "revision" not in origin:
        origin["sha256"] = file_sha256(file)
    facts = preset.model_dump(mode="json", include={"repo", "licence", "gated", "verified"})
    config = SlideEncoderConfig(
        architecture=preset.architecture,
        grid_um=preset.grid_um,
        tile_encoder=preset.tile_encoder,
        pooling=preset.pooling,
        provenance={
            "preset": preset.name,
            **facts,
            "conversion": list(converted.notes),
            **origin,
        },
    )
    return config, network


def _is_folder(text: str, preset: SlidePreset | None) -> bool:
    """Whether it is a folder to open; a preset's name that is one too is refused, not guessed."""
    folder = whole_folder(text)
    if preset is None:
        return folder.is_dir()
    if (folder / CONFIG).exists():
        msg = "is a folder here, and the name of a published encoder. Name its whole path."
        raise EncoderError(text, msg)
    return False


def _unknown(text: str) -> str:
    known = ", ".join(SLIDE_PRESETS)
    if text.partition("=")[0] in {*BUNDLED, *PRESETS}:
        return f"embeds tiles, not slides. Name RUN/encoder of a slide encoder, or one of: {known}."
    if Path(text).suffix in SUFFIXES and Path(text).is_file():
        return f"is a weight file. Say of which slide encoder: {next(iter(SLIDE_PRESETS))}={text}."
    near = get_close_matches(text.partition("=")[0].lower(), SLIDE_PRESETS, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"no such slide encoder folder or name.{hint} Name RUN/encoder, or one of: {known}."
