"""What an earlier run left in the folder of an explained slide, by its ``explain.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from anlage.errors import AnlageError

FORMAT = "slide_explanation/1"
RECORD = "explain.json"


def earlier_files(folder: Path, slide_id: str) -> list[Path]:
    """The files that an earlier run on this slide wrote into a folder and named there.

    Args:
        folder: Where a run is to write; need not be there.
        slide_id: Of which slide.

    Returns:
        Those that are there still; none where ``explain.json`` is not ours.

    Raises:
        AnlageError: If the folder holds bags, or files of another slide, among which this one's
            would lie.
    """
    if any(any(folder.glob(pattern)) for pattern in ("*.h5", "*.zarr")):
        raise AnlageError(folder, "holds bags. Name a folder of its own for what explains a slide.")
    told = _told(folder / RECORD)
    if told.get("format") != FORMAT:
        return []
    other = told.get("slide_id", slide_id)
    if other != slide_id:
        msg = f"holds files of slide {other!r}. Name another folder for {slide_id!r}."
        raise AnlageError(folder, msg)
    names = [name for name in told.get("files", ()) if isinstance(name, str)]
    paths = [folder / name for name in names if name and Path(name).name == name]
    return [path for path in paths if path.is_file()]


def _told(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is none, as it is replaced whatever it holds."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}
