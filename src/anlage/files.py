"""Files that are either whole or absent: write beside, fsync, rename."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replace_whole(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``, which becomes ``path`` if all goes well.

    A reader sees the old file or the new one, never a part: the bytes are on disk before the
    name is. On failure the temporary file is removed.

    Args:
        path: File to make or replace; its folder is made if it is missing.

    Yields:
        The temporary file to write to, in the same folder (so that the rename is atomic).
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield beside
        with beside.open("rb+") as written:
            os.fsync(written.fileno())
        beside.replace(target)
        _sync_folder(target.parent)
    finally:
        beside.unlink(missing_ok=True)


def write_text_whole(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file whole or not at all."""
    with replace_whole(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json_whole(path: str | Path, value: Any) -> None:  # noqa: ANN401 - anything json can hold
    """Write a JSON file (indented, sorted as given) whole or not at all."""
    write_text_whole(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _sync_folder(folder: Path) -> None:
    """Put the new name itself on disk, where the system can open a folder (not on Windows)."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
