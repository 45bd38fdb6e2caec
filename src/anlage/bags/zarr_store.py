"""The Zarr bag: a folder here, or objects in a bucket; whole only with its ``zarr.json``.

Here the folder is filled beside its place and renamed. In a bucket, where nothing can be renamed,
the marker is deleted first and written last, so that a bag whose writer died is not there.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from anlage.bags.bag import Bag, BagHeader
from anlage.bags.zarr_layout import (
    COORDS,
    CUT_SHORT,
    MARKER,
    SHARD,
    header_of,
    parse_coords,
    parse_marker,
    parse_shard,
    shard_end,
    zarr_objects,
)
from anlage.errors import BagError, SlideError
from anlage.slides.storage.location import is_remote
from anlage.slides.storage.object_store import RemoteBytes
from anlage.slides.storage.remote_objects import (
    delete_object,
    find_object,
    get_object,
    put_object,
    refuse_unwritable,
)

LOGGER = logging.getLogger(__name__)
T = TypeVar("T")
MOST_ATTEMPTS = 5  # in a bucket, where each takes seconds
MOST_RENAMES = 200
OTHER_WRITER = "another process keeps writing it. Give each slide to one process."


def write_zarr(place: str, bag: Bag) -> None:
    """Write a bag (in its stored types) whole or not at all; one that is there is replaced.

    Raises:
        BagError: If the bucket refuses, or another process writes the same bag without end.
        OSError: If the disk is full or refuses; carries the place.
    """
    if is_remote(place):
        _told(place, lambda: _write_remote(place, bag))
        return
    try:
        _write_local(Path(place), bag)
    except OSError as error:
        raise OSError(error.errno, f"write_bag: {error.strerror}", place) from error


def _write_local(target: Path, bag: Bag) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = folder_beside(target)
    try:
        for name, data in zarr_objects(bag).items():
            path = beside / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        rename_folder_over(beside, target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def folder_beside(target: Path) -> Path:
    """A name beside ``target`` that is nobody's, in the form of things half-written."""
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")


def rename_folder_over(beside: Path, target: Path) -> None:
    """Rename a folder to ``target``; what is there, from before or by another process, goes.

    Raises:
        BagError: If other processes put theirs there again and again.
        OSError: If it cannot be renamed.
    """
    for _ in range(MOST_RENAMES):
        try:
            beside.rename(target)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
        else:
            return
        aside = folder_beside(target)
        try:
            target.rename(aside)
        except FileNotFoundError:  # the other process has just moved it
            time.sleep(random.uniform(0, 0.01))  # noqa: S311 - so that the two get out of step
            continue
        shutil.rmtree(aside, ignore_errors=True)
    raise BagError(target, OTHER_WRITER)


def _write_remote(place: str, bag: Bag) -> None:
    """Write until every object is the one of this process, whoever else writes them."""
    refuse_unwritable(place)
    objects = zarr_objects(bag)
    for attempt in range(MOST_ATTEMPTS):
        delete_object(f"{place}/{MARKER}")
        versions = {name: put_object(f"{place}/{name}", data) for name, data in objects.items()}
        found = {name: find_object(f"{place}/{name}") for name in objects}
        if all(now is not None and now.version == versions[k] for k, now in found.items()):
            return
        LOGGER.warning("%s: another process writes it too; writing it again", place)
        time.sleep(random.uniform(0, 0.5 * 2**attempt))  # noqa: S311 - so that one comes last
    raise BagError(place, OTHER_WRITER)


def has_zarr(place: str) -> bool:
    """Whether a finished bag, or some other Zarr group, is there.

    Raises:
        BagError: If a bucket does not say.
    """
    if is_remote(place):
        return _told(place, lambda: find_object(f"{place}/{MARKER}")) is not None
    return (Path(place) / MARKER).is_file()


def read_zarr(place: str) -> tuple[BagHeader, NDArray[np.float16]]:
    """Header and features of a bag; its checksum is not compared.

    Raises:
        BagError: If it is missing, was not finished, is cut short or no bag.
    """
    header, n_tiles, width = _opened(place)
    if n_tiles == 0:
        return header, np.empty((0, width), np.float16)
    return header, parse_shard(place, _object(place, SHARD), n_tiles, width)


def read_zarr_header(place: str) -> BagHeader:
    """All of a bag but its features; raises as ``read_zarr``."""
    return _opened(place)[0]


def zarr_blocks(place: str, header: BagHeader, n_rows: int) -> Iterator[NDArray[np.float16]]:
    """The features in blocks of at most ``n_rows`` tiles; raises as ``read_zarr``.

    The tiles of a shard lie one after the other from its first byte, so a block is one range.
    """
    n_tiles, width = len(header.coords), header.width
    if n_tiles == 0:
        return
    read = _ranges(place)
    start, end = shard_end(n_tiles, width)
    if read(start, len(end)) != end:
        raise BagError(place, CUT_SHORT)
    for first in range(0, n_tiles, n_rows):
        count = min(n_rows, n_tiles - first)
        data = read(first * width * 2, count * width * 2)
        if len(data) != count * width * 2:
            raise BagError(place, CUT_SHORT)
        yield np.frombuffer(data, "<f2").reshape(count, width).astype(np.float16)


def _ranges(place: str) -> Callable[[int, int], bytes]:
    """A function that reads bytes of the shard, by offset and count."""
    if is_remote(place):
        source = _told(place, lambda: RemoteBytes(f"{place}/{SHARD}"))
        return lambda offset, count: _told(place, lambda: source.read(offset, count))

    def read(offset: int, count: int) -> bytes:
        try:
            with (Path(place) / SHARD).open("rb") as file:
                file.seek(offset)
                return file.read(count)
        except OSError as error:
            raise BagError(place, _lacks(SHARD)) from error

    return read


def _opened(place: str) -> tuple[BagHeader, int, int]:
    stored, n_tiles, width = parse_marker(place, _object(place, MARKER))
    coords = np.empty((0, 2), np.int64)
    if n_tiles:
        coords = parse_coords(place, _object(place, COORDS), n_tiles)
    return header_of(place, stored, coords, width), n_tiles, width


def _object(place: str, name: str) -> bytes:
    if is_remote(place):
        found = _told(place, lambda: get_object(f"{place}/{name}"))
        if found is None:
            raise BagError(place, _lacks(name))
        return found[0]
    try:
        return (Path(place) / name).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        is_there = Path(place).exists()
        raise BagError(place, _lacks(name) if is_there else _lacks("")) from error
    except OSError as error:
        raise BagError(place, f"cannot be read ({error.strerror}). Check the disk.") from error


def _lacks(name: str) -> str:
    if not name:
        return "no such bag. Embed the slide first."
    if name == MARKER:
        return "no finished bag is there: it has no zarr.json. Embed the slide, or embed it again."
    return f"has no {name}: part of it was deleted. Delete it and embed the slide again."


def _told(place: str, ask: Callable[[], T]) -> T:
    try:
        return ask()
    except SlideError as error:
        raise BagError(place, error.message) from error
