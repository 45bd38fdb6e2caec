"""The Zarr bag: a folder here, or objects in a bucket; whole only with its ``zarr.json``.

Here the folder is filled beside its place and swapped in. In a bucket, where nothing can be
renamed, the marker is deleted first and written last, so that a bag whose writer died is not there.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from anlage.bags.bag import Bag, BagHeader
from anlage.errors import BagError, SlideError
from anlage.folder_replacement import replace_folder, whole_folder
from anlage.slides.storage.byte_source import ByteSource, open_bytes
from anlage.slides.storage.location import is_remote
from anlage.slides.storage.remote_objects import (
    delete_object,
    find_object,
    put_object,
    refuse_unwritable,
)

if TYPE_CHECKING:
    from anlage.bags.zarr_group import ZarrBag

LOGGER = logging.getLogger(__name__)
T = TypeVar("T")
MARKER = "zarr.json"
Objects = Mapping[str, bytes | memoryview]  # the marker is the last
MOST_ATTEMPTS = 5  # in a bucket, where each takes seconds
MOST_LOOKS = 3  # here, while the folder is replaced: in its place, set aside, in its place
OTHER_WRITER = "another process keeps writing it. Give each slide to one process."


def write_zarr(place: str, bag: Bag) -> None:
    """Write a bag (in its stored types) whole or not at all; one that is there is replaced.

    Raises:
        BagError: If the bucket refuses, or another process writes the same bag in it without end.
        OSError: If the disk is full or refuses, or another process does so here; carries the place.
    """
    from anlage.bags.zarr_group import zarr_objects

    if is_remote(place):
        _told(place, lambda: refuse_unwritable(place))
        objects = zarr_objects(bag)
        _told(place, lambda: _write_remote(place, objects))
        return
    try:
        _write_local(Path(place), zarr_objects(bag))
    except OSError as error:
        raise OSError(error.errno, f"write_bag: {error.strerror}", place) from error


def _write_local(target: Path, objects: Objects) -> None:
    with replace_folder(target, clear_older_than_s=None) as beside:
        for name, data in objects.items():
            path = beside / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def _write_remote(place: str, objects: Objects) -> None:
    """Write until every object is the one of this process, whoever else writes them."""
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
    return any((whole_folder(place) / MARKER).is_file() for _ in range(MOST_LOOKS))


def read_zarr(place: str) -> tuple[BagHeader, NDArray[np.float16]]:
    """Header and features of a bag; its checksum is not compared.

    Raises:
        BagError: If it is missing, was not finished, is cut short or no bag.
    """
    bag = _opened(place)
    return _told(place, bag.header), _told(place, bag.features)


def read_zarr_header(place: str) -> BagHeader:
    """All of a bag but its features; raises as ``read_zarr``."""
    return _told(place, _opened(place).header)


def zarr_blocks(place: str, header: BagHeader, n_rows: int) -> Iterator[NDArray[np.float16]]:
    """The features in blocks of at most ``n_rows`` tiles; raises as ``read_zarr``."""
    bag = _opened(place)
    for first in range(0, len(header.coords), n_rows):
        yield _told(place, partial(bag.features, first, first + n_rows))


def _opened(place: str) -> ZarrBag:
    from anlage.bags.zarr_group import ZarrBag

    return _told(place, lambda: ZarrBag(place, partial(_open_object, place)))


def _open_object(place: str, name: str) -> ByteSource:
    location = f"{place}/{name}"
    if is_remote(place):
        found = find_object(location)
        if found is None:
            raise BagError(place, _lacks(name))
        return open_bytes(location, version=found.version, size=found.size)
    for _ in range(MOST_LOOKS):
        try:
            return open_bytes(str(whole_folder(place) / name))
        except SlideError as error:
            if not isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                raise
    raise BagError(place, _lacks(name if whole_folder(place).exists() else ""))


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
