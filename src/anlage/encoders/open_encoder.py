"""The one door to tile encoders: a folder, a published name, timm, transformers, your own code."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path

import torch

from anlage.encoders.bundled import BUNDLED, CONFIG, encoder_folder
from anlage.encoders.folder import load_encoder
from anlage.encoders.own_code import SPEC, encoder_of_own_code
from anlage.encoders.precision import Precision
from anlage.encoders.preset_encoder import preset_encoder
from anlage.encoders.presets import PRESETS
from anlage.encoders.slide_presets import SLIDE_PRESETS
from anlage.encoders.tile_encoder import TileEncoder
from anlage.encoders.timm_models import TIMM, timm_encoder
from anlage.encoders.transformers_models import HF, remote_preset, transformers_encoder
from anlage.encoders.weight_files import SUFFIXES
from anlage.errors import EncoderError

AT_MPP = re.compile(r"^(?P<name>.+)@(?P<mpp>\d+(?:\.\d+)?)$")


def open_encoder(
    named: str | Path,
    *,
    device: str | torch.device = "cpu",
    precision: Precision = "auto",
    trust_remote_code: bool = False,
) -> TileEncoder:
    """Open any tile encoder by what a user types.

    Args:
        named: An encoder folder, such as ``RUN/encoder``; a published encoder (``PRESETS``,
            ``BUNDLED``), such as ``uni`` or, at another resolution, ``virchow2@1.0``; one with its
            weight file, ``uni=FILE``; ``timm:NAME@MPP``; ``hf:OWNER/MODEL[@REVISION]@MPP``; or a
            function that makes one, ``module:function`` or ``file.py:function``.
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``.
        precision: See ``TileEncoder``.
        trust_remote_code: Whether code that lies beside weights on the hub may run.

    Returns:
        The encoder, in evaluation mode.

    Raises:
        EncoderError: If nothing is of that name, or it cannot be had or loaded whole; the text
            says what to do.
        DeviceError: If there is no such device here.
        ValueError: If the device cannot compute in the precision asked for.
    """
    text = str(named)
    if not text:
        raise EncoderError(repr(text), "needs the name of an encoder; got nothing. Name one.")
    how: dict[str, str | torch.device] = {"device": device, "precision": precision}
    if text.startswith(TIMM):
        name, mpp = _with_mpp(text)
        return timm_encoder(name.removeprefix(TIMM), mpp=mpp, **how)  # type: ignore[arg-type]
    if text.startswith(HF):
        name, mpp = _with_mpp(text)
        repo, _, revision = name.removeprefix(HF).partition("@")
        return transformers_encoder(
            repo,
            revision=revision or None,
            mpp=mpp,
            trust_remote_code=trust_remote_code,
            **how,  # type: ignore[arg-type]
        )
    if text in BUNDLED or _is_encoder_folder(text):
        return load_encoder(text, device=device, precision=precision)
    return _by_name(text, how, trust_remote_code=trust_remote_code)


def _by_name(
    text: str, how: dict[str, str | torch.device], *, trust_remote_code: bool
) -> TileEncoder:
    """A preset, with a file or a resolution or neither; or the user's code."""
    name, _, file = text.partition("=")
    at = AT_MPP.match(name)
    preset = PRESETS.get(at["name"] if at else name)
    mpp = float(at["mpp"]) if at else None
    if preset is None:
        if SPEC.match(text):
            return encoder_of_own_code(text, **how)  # type: ignore[arg-type]
        raise EncoderError(text, _unknown(text))
    if preset.remote is None:
        weights = Path(file) if file else None
        return preset_encoder(preset, file=weights, mpp=mpp, **how)  # type: ignore[arg-type]
    if file:
        msg = f"runs by its authors' code, which loads its own weights. Name it without {file}."
        raise EncoderError(text, msg)
    return remote_preset(preset, mpp=mpp, trust_remote_code=trust_remote_code, **how)  # type: ignore[arg-type]


def _with_mpp(text: str) -> tuple[str, float]:
    found = AT_MPP.match(text)
    if found is None:
        msg = f"does not say at which resolution. Add it, in micrometres per pixel: {text}@0.5."
        raise EncoderError(text, msg)
    return found["name"], float(found["mpp"])


def _is_encoder_folder(text: str) -> bool:
    """Whether it is a folder to open; a preset's name that is one too is refused, not guessed."""
    folder = encoder_folder(text)
    if text not in PRESETS:
        return folder.is_dir()
    if (folder / CONFIG).exists():
        msg = (
            "is an encoder folder here, and the name of a published encoder. Name the folder by "
            "its whole path, or rename it."
        )
        raise EncoderError(text, msg)
    return False


def _unknown(text: str) -> str:
    if text.partition("=")[0] in SLIDE_PRESETS:
        return "embeds slides, not tiles. Name it to `embed slides`, and a tile encoder here."
    if Path(text).suffix in SUFFIXES and Path(text).is_file():
        return f"is a weight file. Say of which encoder: NAME={text} (`anlage encoders`)."
    near = get_close_matches(text.partition("=")[0].lower(), [*BUNDLED, *PRESETS], n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return (
        f"no such encoder folder or name.{hint} `anlage encoders` lists the names; others are "
        "timm:NAME@MPP, hf:OWNER/MODEL@MPP and file.py:function."
    )
