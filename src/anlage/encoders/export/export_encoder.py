"""Export an encoder: its files in one format, checked, with a card; whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from anlage.encoders.export.model_card import SIGNATURE, Card, card_text
from anlage.encoders.export.to_onnx import write_onnx
from anlage.encoders.export.to_safetensors import write_safetensors
from anlage.encoders.export.to_timm import write_timm
from anlage.encoders.export.to_transformers import write_transformers
from anlage.encoders.export.written import Written
from anlage.encoders.tile_encoder import TileEncoder
from anlage.errors import EncoderError
from anlage.folder_replacement import replace_folder

Format = Literal["timm", "hf", "onnx", "safetensors"]
README = "README.md"
WRITERS: Mapping[str, Callable[[TileEncoder, Path], Written]] = MappingProxyType(
    {
        "timm": write_timm,
        "hf": write_transformers,
        "onnx": write_onnx,
        "safetensors": write_safetensors,
    }
)


def export_encoder(
    encoder: TileEncoder,
    folder: str | Path,
    *,
    to: Format,
    licence: str | None = None,
    scores: Sequence[str] = (),
    own_card: str | None = None,
) -> Written:
    """Write an encoder in another format, with a model card, and compare its embeddings.

    Args:
        encoder: One that runs on our transformer, in float32, on the CPU.
        folder: Folder to make: absent, empty, or of an earlier export, which is replaced.
        to: ``timm``, ``hf`` (transformers), ``onnx``, or ``safetensors`` (ours).
        licence: Of the weights; what the encoder's provenance states if None.
        scores: Lines of an evaluation of this encoder, for the card.
        own_card: README of the folder it comes from, for the card.

    Returns:
        What was written: how it is opened, what it leaves out, and how near its embeddings are.

    Raises:
        EncoderError: If the folder holds anything else, the encoder does not run on our
            transformer, the format cannot express it, or what was written gives other embeddings.
        ValueError: If there is no such format, or the encoder is not in float32 on the CPU.
    """
    if to not in WRITERS:
        msg = f"export_encoder: needs one of {', '.join(WRITERS)}; got {to!r}. Choose one of them."
        raise ValueError(msg)
    if encoder.precision != "fp32" or encoder.device.type != "cpu":
        msg = (
            "export_encoder: needs an encoder in fp32 on the cpu; got "
            f"{encoder.precision} on {encoder.device.type}. Open it so."
        )
        raise ValueError(msg)
    refuse_other_content(folder)
    licence = licence or encoder.config.provenance.get("licence")
    title = Path(folder).resolve().name
    card = Card(title=title, licence=licence, scores=scores, own_card=own_card)
    with replace_folder(folder) as beside:
        written = WRITERS[to](encoder, beside)
        (beside / README).write_text(card_text(encoder, written, card), encoding="utf-8")
    return written


def refuse_other_content(folder: str | Path) -> None:
    """Refuse a folder whose content is not an earlier export, since it would be replaced.

    Raises:
        EncoderError: If it is one, or a file.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise EncoderError(folder, "is a file. Name a folder.")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    readme = folder / README
    if not readme.is_file() or SIGNATURE not in readme.read_text(encoding="utf-8"):
        msg = "needs an empty folder or one of an earlier export; it holds other files. "
        raise EncoderError(folder, msg + "Name another folder.")
    if any(path.is_dir() for path in folder.iterdir()):
        msg = "holds folders beside an earlier export, which would be lost. Name another folder."
        raise EncoderError(folder, msg)
