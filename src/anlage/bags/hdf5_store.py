"""The HDF5 bag: one file a slide, in the layout that TRIDENT and CLAM read.

    features   (L, D) float16, contiguous, not compressed
    coords     (L, 2) int64, upper-left corners (x, y) in level-0 pixels, with TRIDENT's attributes

The file's own attributes (``format = "bag/1"``) say what made it; see BagAttributes.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from anlage.bags.bag import (
    FORMAT,
    Bag,
    BagHeader,
    attributes_from,
    content_sha256,
    trident_attributes,
)
from anlage.errors import BagError
from anlage.files import replace_whole


def write_hdf5(path: Path, bag: Bag) -> None:
    """Write a bag (in its stored types) whole or not at all.

    Raises:
        OSError: If the disk is full or refuses; carries ``path``.
    """

    def fill(file: h5py.File) -> None:
        shape, dtype = bag.features.shape, bag.features.dtype
        feature_data = file.create_dataset("features", shape, dtype)  # filled in as the last thing
        feature_data.attrs["name"] = bag.slide_id
        if bag.attributes.encoder_name:
            feature_data.attrs["encoder"] = bag.attributes.encoder_name
        coord_data = file.create_dataset("coords", data=bag.coords)
        coord_data.attrs.update(trident_attributes(bag))
        for name, value in _as_attributes(bag).items():
            file.attrs[name] = value
        file.attrs["format"] = FORMAT
        file.attrs["slide_id"] = bag.slide_id
        file.attrs["tile_level0_px"] = bag.attributes.tile_level0_px
        file.attrs["content_sha256"] = content_sha256(bag.features, bag.coords)

    write_hdf5_whole(path, fill, last=("features", bag.features))


def write_hdf5_whole(
    path: Path, fill: Callable[[h5py.File], None], *, last: tuple[str, NDArray[Any]] | None = None
) -> None:
    """Write any HDF5 file whole or not at all.

    It is built in memory and written by plain means, so that a full disk is a plain error.

    Args:
        path: File to make or replace.
        fill: Puts the content into it.
        last: Name and values of a dataset that ``fill`` creates, contiguous, and leaves unwritten.
            It comes to lie at the end of the file, and is not held in memory once more.

    Raises:
        OSError: If the disk is full or refuses; carries ``path``.
    """
    memory, begins_at = io.BytesIO(), 0
    with h5py.File(memory, "w") as file:
        fill(file)
        if last is not None and last[1].size:
            file[last[0]][0] = last[1][0]  # a first row gives it its place, behind all else
            begins_at = file[last[0]].id.get_offset()
    try:
        with replace_whole(path) as beside, beside.open("wb") as written:
            written.write(memory.getbuffer())
            if begins_at and last is not None:
                written.seek(begins_at)
                written.write(np.ascontiguousarray(last[1]).data)
    except OSError as error:
        raise OSError(error.errno, f"write_bag: {error.strerror}", str(path)) from error


def _as_attributes(bag: Bag) -> dict[str, Any]:
    stored = bag.attributes.as_json()
    stored["versions"] = json.dumps(stored["versions"], sort_keys=True)
    return {k: h5py.Empty("f8") if value is None else value for k, value in stored.items()}


def read_hdf5(path: Path) -> tuple[BagHeader, NDArray[np.float16]]:
    """Header and features of a bag; its checksum is not compared.

    Raises:
        BagError: If the file is missing, cut short, or of another format.
    """
    with _opened(path) as file:
        return _header(path, file), _features(file)


def read_hdf5_header(path: Path) -> BagHeader:
    """All of a bag but its features; raises as ``read_hdf5``."""
    with _opened(path) as file:
        return _header(path, file)


def hdf5_blocks(path: Path, header: BagHeader, n_rows: int) -> Iterator[NDArray[np.float16]]:
    """The features in blocks of at most ``n_rows`` tiles; raises as ``read_hdf5``."""
    with _opened(path) as file:
        for first in range(0, len(header.coords), n_rows):
            yield file["features"][first : first + n_rows]


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    if not path.is_file():
        raise BagError(path, "no such bag. Embed the slide first.")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError) as error:
        reason = str(error).strip("'\"")
        msg = f"not a whole HDF5 file ({reason}). Delete it and embed the slide again."
        raise BagError(path, msg) from error


def _features(file: h5py.File) -> NDArray[np.float16]:
    """All features: by their place in the file, since HDF5 lets one thread read at a time.

    Raises:
        OSError: If the file became shorter.
    """
    data = file["features"]
    place = data.id.get_offset()
    if place is None:  # empty, or in chunks as another program may write them
        return np.asarray(data[()])
    values = np.empty(data.shape, data.dtype)
    descriptor = file.id.get_vfd_handle()
    left = values.data.cast("B")
    while left:
        n_read = os.preadv(descriptor, [left], place)
        if not n_read:
            msg = f"cut short while it was read: {len(left)} bytes of the features are gone"
            raise OSError(msg)
        left, place = left[n_read:], place + n_read
    return values


def _header(path: Path, file: h5py.File) -> BagHeader:
    found = file.attrs.get("format")
    if found != FORMAT:
        msg = f"needs format {FORMAT!r}; got {found!r}. Embed the slide again, or convert the file."
        raise BagError(path, msg)
    coords, width = _checked_datasets(path, file)
    slide_id, checksum = file.attrs.get("slide_id"), file.attrs.get("content_sha256")
    if not isinstance(slide_id, str) or not isinstance(checksum, str):
        raise BagError(path, "needs attributes slide_id and content_sha256. Embed the slide again.")
    return BagHeader(slide_id, width, coords, attributes_from(path, _plain(file.attrs)), checksum)


def _plain(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of a file as ``BagAttributes.as_json`` gave them."""
    found = {k: None if isinstance(value, h5py.Empty) else value for k, value in stored.items()}
    try:
        found["versions"] = json.loads(str(found["versions"]))
    except (KeyError, TypeError, ValueError):
        found.pop("versions", None)  # attributes_from says that it is not there
    return found


def _checked_datasets(path: Path, file: h5py.File) -> tuple[NDArray[np.int64], int]:
    wanted = {"features": np.float16, "coords": np.int64}
    for name, dtype in wanted.items():
        data = file.get(name)
        if not isinstance(data, h5py.Dataset) or data.ndim != 2 or data.dtype != dtype:
            got = f"{data.shape} {data.dtype}" if isinstance(data, h5py.Dataset) else "nothing"
            msg = f"needs a 2-D dataset {name!r} of {np.dtype(dtype)}; got {got}. Embed it again."
            raise BagError(path, msg)
    features, coords = file["features"], file["coords"]
    if coords.shape != (len(features), 2):
        rule = f"needs coords ({len(features)}, 2), one row a tile"
        msg = f"{rule}; got {coords.shape}. Embed the slide again."
        raise BagError(path, msg)
    return coords[()], int(features.shape[1])
