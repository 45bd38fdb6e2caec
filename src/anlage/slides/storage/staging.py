"""Copies of remote slides on a local disk, for readers that need a file: the latest used are kept.

Each slide has an entry ``KEY/FILE`` and a lock ``KEY.lock``. Who copies or removes an entry holds
its lock alone, who reads it shares it; the lock ends with its process. ``.lock`` is held for the
short time in which room is made.
"""

from __future__ import annotations

import errno
import fcntl
import math
import os
import shutil
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

from anlage.errors import AnlageError, SlideError
from anlage.files import replace_whole
from anlage.slides.storage.byte_source import NoRoomError
from anlage.slides.storage.cache_folder import cache_folder, key_of
from anlage.slides.storage.location import file_name
from anlage.slides.storage.object_store import RemoteBytes

LOCK = ".lock"
LIMIT = "ANLAGE_STAGE_GB"
DEFAULT_LIMIT_GB = 100.0
PART_BYTES = 2**23
PARTS_IN_FLIGHT = 8
GB = 10**9


class Staged:
    """A local copy that is kept while it is in use.

    Attributes:
        path: The copy; its folder holds nothing else.
    """

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    def release(self) -> None:
        """From now on the copy may be removed to make room for others."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def stage(source: RemoteBytes) -> Staged:
    """A local copy of a remote file, made if there is none of this version yet.

    Two processes that ask for one slide download it once. The copies together take at most
    ``ANLAGE_STAGE_GB`` (100 if unset) of 10^9 bytes; those that were used longest ago go first,
    and never one that is in use.

    Args:
        source: The remote file.

    Raises:
        NoRoomError: If the copies that are in use leave no room for it.
        SlideError: If the file is larger than the limit; if the disk is full; if the file cannot
            be read. No part of it is left behind.
    """
    limit = _limit_bytes()
    if source.size > limit:
        raise SlideError(
            source.path,
            f"has {source.size / GB:.3g} GB, and copies of remote slides may take {limit / GB:.3g} "
            f"GB. Set {LIMIT} higher, or convert the slide to a pyramidal TIFF, which needs none.",
        )
    folder = cache_folder("staged")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _staged(source, folder, limit)
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
        remedy = "Free some space" if full else "Check the folder"
        raise SlideError(
            source.path,
            f"cannot be copied to {folder}: {error.strerror}. {remedy}, set ANLAGE_CACHE to a "
            f"folder on another disk, or lower {LIMIT}.",
        ) from error


def _staged(source: RemoteBytes, folder: Path, limit: int) -> Staged:
    key = key_of(source.path, source.version)
    path = folder / key / (file_name(source.path) or "slide")
    while True:  # once more where another process made room with it in between
        lock = _lock(folder / f"{key}{LOCK}", fcntl.LOCK_SH)
        if path.exists():
            os.utime(lock)  # when it was used last
            return Staged(path, lock)
        _unlock(lock)
        with _held(folder / f"{key}{LOCK}"):
            if not path.exists():
                _copy(source, path, limit)


def _copy(source: RemoteBytes, path: Path, limit: int) -> None:
    """Copy the file, whole or not at all; room for it is taken before the first byte."""
    _remove(path.parent)  # what a process left that was killed
    try:
        with replace_whole(path) as beside:
            with _held(path.parents[1] / LOCK):
                _make_room(source, path.parents[1], limit - source.size)
                with beside.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, source.size)
            with beside.open("rb+") as file:
                _download(source, file.fileno())
    except BaseException:
        _remove(path.parent)
        raise


def _download(source: RemoteBytes, descriptor: int) -> None:
    """All bytes of the file, some parts of it at the same time."""
    in_flight: deque[tuple[int, Future[list[bytes]]]] = deque()
    try:
        for offset in range(0, source.size, PART_BYTES):
            if len(in_flight) == PARTS_IN_FLIGHT:
                _write(descriptor, *in_flight.popleft())
            part = (offset, min(PART_BYTES, source.size - offset))
            in_flight.append((offset, source.start([part])))
        while in_flight:
            _write(descriptor, *in_flight.popleft())
    finally:
        for _, future in in_flight:
            future.cancel()


def _write(descriptor: int, offset: int, future: Future[list[bytes]]) -> None:
    (data,) = future.result()
    view = memoryview(data)
    while view:
        n_written = os.pwrite(descriptor, view, offset)
        view, offset = view[n_written:], offset + n_written


def _make_room(source: RemoteBytes, folder: Path, limit: int) -> None:
    """Remove what was used longest ago until all copies take ``limit`` bytes at most."""
    entries = [entry for entry in folder.iterdir() if entry.is_dir()]
    sizes = {entry: _bytes_in(entry) for entry in entries}
    total = sum(sizes.values())
    for entry in sorted(entries, key=_last_use):
        if total <= limit:
            return
        if _remove_unused(entry):
            total -= sizes[entry]
    if total > limit:
        raise NoRoomError(
            source.path,
            f"needs {source.size / GB:.3g} GB beside {total / GB:.3g} GB of copies that are in "
            f"use, more than {LIMIT} allows. Set it higher, or open fewer slides at a time.",
        )


def _bytes_in(entry: Path) -> int:
    try:
        return sum(file.stat().st_size for file in entry.iterdir())
    except FileNotFoundError:  # who copies it has just finished, or given up
        return _bytes_in(entry) if entry.exists() else 0


def _last_use(entry: Path) -> float:
    lock = entry.with_name(entry.name + LOCK)
    return lock.stat().st_mtime if lock.exists() else 0.0


def _remove_unused(entry: Path) -> bool:
    """Remove a copy, unless somebody reads or writes it."""
    lock = os.open(entry.with_name(entry.name + LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(entry)
    except BlockingIOError:
        return False
    finally:
        _unlock(lock)
    return True


def _remove(entry: Path) -> None:
    if entry.exists():
        shutil.rmtree(entry)


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Hold a lock alone; waits for whoever has it, which is at most as long as it lives."""
    lock = _lock(path, fcntl.LOCK_EX)
    try:
        yield
    finally:
        _unlock(lock)


def _lock(path: Path, kind: int) -> int:
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(lock, kind)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _unlock(lock: int) -> None:
    """End a lock, also where a child forked meanwhile has the descriptor too and keeps it."""
    fcntl.flock(lock, fcntl.LOCK_UN)
    os.close(lock)


def _limit_bytes() -> int:
    text = os.environ.get(LIMIT, "")
    try:
        limit_gb = float(text or DEFAULT_LIMIT_GB)
    except ValueError:
        limit_gb = math.nan
    if not 0 < limit_gb < math.inf:
        msg = f"needs a number of gigabytes above 0; got {text!r}. Unset it for 100."
        raise AnlageError(LIMIT, msg)
    return int(limit_gb * GB)
