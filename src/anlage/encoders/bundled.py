"""Encoders that come with anlage: which folder a name stands for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from anlage.errors import EncoderError
from anlage.folder_replacement import whole_folder
from anlage.samples import samples_folder

CONFIG = "config.json"
BUNDLED: Mapping[str, Path] = MappingProxyType(
    {"anlage-tiny": samples_folder() / "encoders" / "anlage-tiny"}
)


def encoder_folder(named: str | Path) -> Path:
    """The folder that holds an encoder.

    Args:
        named: A folder, or a name in ``BUNDLED``.

    Returns:
        That of the bundled one; else the folder named, or where an interrupted replacement left it.
        It need not be there.

    Raises:
        EncoderError: If it is the name of a bundled one and of an encoder folder here.
    """
    folder, bundled = whole_folder(named), BUNDLED.get(str(named))
    if bundled is not None and (folder / CONFIG).exists():
        msg = (
            "is an encoder folder here, and the name of an encoder that comes with anlage. Name "
            "the folder by its whole path, or rename it."
        )
        raise EncoderError(named, msg)
    return folder if bundled is None else bundled
