"""Folders that are replaced whole: written beside, synced, swapped in by two renames."""

from __future__ import annotations

import errno
import glob
import logging
import os
import random
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOGGER = logging.getLogger(__name__)
STALE_AFTER_S = 3600.0
REPLACED = ".replaced"
MOST_RENAMES = 200
OTHER_WRITER = {errno.ENOTEMPTY, errno.EEXIST}  # has put its folder there in between


@contextmanager
def replace_folder(
    folder: str | Path, *, clear_older_than_s: float | None = STALE_AFTER_S
) -> Iterator[Path]:
    """Give an empty folder beside ``folder``; on success it becomes ``folder``.

    An existing folder is renamed away, the new one renamed in, the old one then removed. Until the
    new one is there, the old one is under the name that ``whole_folder`` also looks at. Of several
    writers at a time the last one's folder stays, whole.

    Args:
        folder: Folder to make or replace, all its content included.
        clear_older_than_s: Age, seconds, from which what killed writers left of it is removed;
            None to leave that to others, and not to list the folder that ``folder`` is in.

    Yields:
        The folder to put files in.

    Raises:
        OSError: If it cannot be written or renamed.
    """
    target = Path(folder).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    _finish_earlier(target)
    if clear_older_than_s is not None:
        _clear_earlier(target, clear_older_than_s)
    beside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    beside.mkdir()
    try:
        yield beside
        for path in (*beside.rglob("*"), beside):
            _sync(path)
        _swap_in(beside, target)
        _sync(target.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _swap_in(beside: Path, target: Path) -> None:
    replaced = _replaced(target)
    for _ in range(MOST_RENAMES):
        try:
            _set_aside(target)
            beside.rename(target)
        except OSError as error:
            if error.errno not in OTHER_WRITER:
                raise
        else:
            shutil.rmtree(replaced, ignore_errors=True)
            return
        time.sleep(random.uniform(0, 0.01))  # noqa: S311 - so that the two get out of step
    msg = "another process keeps replacing it. Give each folder to one process"
    raise OSError(errno.EBUSY, msg, str(target))


def _set_aside(target: Path) -> None:
    if target.exists():
        shutil.rmtree(_replaced(target), ignore_errors=True)
        with suppress(FileNotFoundError):  # another writer has just set it aside
            target.rename(_replaced(target))


def whole_folder(folder: str | Path) -> Path:
    """Where the content of ``folder`` is: there, or set aside if a replacement was interrupted."""
    target = Path(folder).resolve()
    if not target.exists() and _replaced(target).is_dir():
        LOGGER.warning(
            "%s: its replacement was interrupted or goes on; using the one before it", folder
        )
        return _replaced(target)
    return target


def whole_names(folder: str | Path) -> set[str]:
    """Names in a folder, of each set aside by an interrupted replacement the name it had."""
    names = {path.name for path in Path(folder).iterdir()}
    return {_name_before(name) or name for name in names}


def superseded(folder: str | Path) -> list[Path]:
    """What was set aside in a folder, and has been replaced since: nobody needs it."""
    found = ((path, _name_before(path.name)) for path in Path(folder).iterdir())
    return [path for path, name in found if name and path.with_name(name).exists()]


def _finish_earlier(target: Path) -> None:
    """Put back what an interrupted replacement set aside, or another writer just now."""
    replaced = _replaced(target)
    if target.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        return
    try:
        replaced.rename(target)
    except OSError as error:
        if error.errno not in {*OTHER_WRITER, errno.ENOENT}:
            raise


def _clear_earlier(target: Path, age_s: float) -> None:
    """Remove what killed writers left."""
    for part in target.parent.glob(f".{glob.escape(target.name)}.*.part"):
        with suppress(FileNotFoundError):  # its writer has just finished
            if time.time() - part.stat().st_mtime > age_s:
                shutil.rmtree(part, ignore_errors=True)


def _replaced(target: Path) -> Path:
    return target.with_name(f".{target.name}{REPLACED}")


def _name_before(name: str) -> str:
    """The name of what was set aside; empty for other names."""
    return name[1:].removesuffix(REPLACED) if name[:1] == "." and name.endswith(REPLACED) else ""


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
