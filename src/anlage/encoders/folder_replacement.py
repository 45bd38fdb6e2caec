"""Folders that are replaced whole: written beside, synced, swapped in by two renames."""

from __future__ import annotations

import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOGGER = logging.getLogger(__name__)
STALE_AFTER_S = 3600.0


@contextmanager
def replace_folder(folder: str | Path) -> Iterator[Path]:
    """Give an empty folder beside ``folder``; on success it becomes ``folder``.

    An existing folder is renamed away, the new one renamed in, the old one then removed. A crash
    between the two renames leaves the old one under the name that ``whole_folder`` also looks at.
    Meant for one writer at a time; a second one at the same moment fails with OSError.

    Args:
        folder: Folder to make or replace, all its content included.

    Yields:
        The folder to put files in, directly and not in sub-folders.
    """
    target = Path(folder).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    _finish_or_clear_earlier(target)
    beside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    beside.mkdir()
    try:
        yield beside
        for path in (*beside.iterdir(), beside):
            _sync(path)
        if target.exists():
            target.rename(_replaced(target))
        beside.rename(target)
        _sync(target.parent)
        shutil.rmtree(_replaced(target), ignore_errors=True)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def whole_folder(folder: str | Path) -> Path:
    """Where the content of ``folder`` is: there, or set aside if a replacement was interrupted."""
    target = Path(folder).resolve()
    if not target.exists() and _replaced(target).is_dir():
        LOGGER.warning("%s: its replacement was interrupted; using the one before it", folder)
        return _replaced(target)
    return target


def _finish_or_clear_earlier(target: Path) -> None:
    """Put back what an interrupted replacement set aside; remove what killed ones left."""
    replaced = _replaced(target)
    if replaced.is_dir() and not target.exists():
        replaced.rename(target)
    shutil.rmtree(replaced, ignore_errors=True)
    for part in target.parent.glob(f".{target.name}.*.part"):
        if time.time() - part.stat().st_mtime > STALE_AFTER_S:
            shutil.rmtree(part, ignore_errors=True)


def _replaced(target: Path) -> Path:
    return target.with_name(f".{target.name}.replaced")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
