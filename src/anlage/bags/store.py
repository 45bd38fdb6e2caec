"""Bags in files and buckets: the one way to write, read and find them, whatever the format.

A bag's place is ``ID.h5`` (HDF5), ``ID.zarr`` (a Zarr v3 folder), or the URL of the latter in a
bucket. Shape suffixes: L tiles of the slide, D embedding width.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from anlage.bags.bag import (
    FLOAT16_MAX,
    FORMAT,
    Bag,
    BagAttributes,
    BagHeader,
    as_stored,
    content_sha256,
)
from anlage.bags.hdf5_store import hdf5_blocks, read_hdf5, read_hdf5_header, write_hdf5
from anlage.bags.zarr_store import (
    has_zarr,
    read_zarr,
    read_zarr_header,
    write_zarr,
    zarr_blocks,
)
from anlage.errors import BagError, SlideError
from anlage.folder_replacement import superseded, whole_names
from anlage.slides.storage.location import is_remote
from anlage.slides.storage.remote_objects import list_folder

__all__ = [
    "FLOAT16_MAX",
    "FORMAT",
    "Bag",
    "BagAttributes",
    "BagHeader",
    "Store",
    "bag_place",
    "clear_half_written",
    "content_sha256",
    "feature_blocks",
    "half_written",
    "has_bag",
    "list_bags",
    "read_bag",
    "read_bag_header",
    "write_bag",
]

Store = Literal["hdf5", "zarr"]
SUFFIXES: dict[Store, str] = {"hdf5": ".h5", "zarr": ".zarr"}
PARTS = (".*.h5.*.part", ".*.zarr.*.part")


def bag_place(folder: str | Path, slide_id: str, *, store: Store | None = None) -> str:
    """Where the bag of a slide is, in a folder or below a URL.

    Args:
        folder: A folder, or ``s3://``, ``gs://`` or ``az://`` URL.
        slide_id: The slide.
        store: ``hdf5`` or ``zarr``; None for HDF5 in a folder and Zarr at a URL.

    Raises:
        BagError: If HDF5 is asked for at a URL, which cannot be written a part at a time.
        ValueError: If the slide_id cannot be the name of a file.
    """
    if slide_id in {"", ".", ".."} or any(mark in slide_id for mark in "/\\\0"):
        msg = f"bag_place: needs a slide_id that can be a file name; got {slide_id!r}. Rename it."
        raise ValueError(msg)
    if not is_remote(str(folder)):
        return str(Path(folder) / f"{slide_id}{SUFFIXES[store or 'hdf5']}")
    if store == "hdf5":
        raise BagError(folder, "holds Zarr bags only, as every URL does. Name a folder for HDF5.")
    return f"{str(folder).rstrip('/')}/{slide_id}.zarr"


def write_bag(place: str | Path, bag: Bag) -> None:
    """Write a bag whole or not at all; an existing one is replaced.

    Args:
        place: File, folder or URL to write; ``.zarr`` makes it a Zarr group, all else HDF5.
        bag: Features of any floating dtype (stored as float16), and their corners.

    Raises:
        BagError: If a feature is not finite or does not fit float16, or a bucket refuses.
        ValueError: If features and coords are not (L, D) floats and (L, 2) integers.
        OSError: If the disk is full or refuses; carries ``place``.
    """
    stored = as_stored(place, bag)
    if _is_zarr(place):
        write_zarr(_zarr_place(place), stored)
    else:
        write_hdf5(Path(place), stored)


def read_bag(place: str | Path, *, verify: bool = True, sha256: str | None = None) -> Bag:
    """Read a bag, refusing one that is damaged or is something else.

    Args:
        place: What ``write_bag`` wrote.
        verify: Hash the content and compare (0.04 s for 20,000 tiles of width 1,536). Without it
            a changed bit inside the arrays goes unseen; shapes and attributes are always checked.
        sha256: The content's SHA-256 that the bag needs to state; None for any.

    Returns:
        The bag: features (L, D) float16, coords (L, 2) int64, level-0 pixels.

    Raises:
        BagError: If it is missing, was not finished, is cut short, of another format, of another
            content than ``sha256``, or its content changed.
    """
    if _is_zarr(place):
        header, features = read_zarr(_zarr_place(place))
    else:
        header, features = read_hdf5(Path(place))
    if sha256 is not None and header.content_sha256 != sha256:
        raise BagError(place, "was replaced since it was opened. Start again with the new bag.")
    if verify and content_sha256(features, header.coords) != header.content_sha256:
        raise _changed(place)
    return Bag(header.slide_id, features, header.coords, header.attributes)


def read_bag_header(place: str | Path) -> BagHeader:
    """Read all of a bag but its features; the same checks as ``read_bag`` without its checksum.

    Raises:
        BagError: If it is missing, was not finished, is cut short, or of another format.
    """
    if _is_zarr(place):
        return read_zarr_header(_zarr_place(place))
    return read_hdf5_header(Path(place))


def feature_blocks(
    place: str | Path, *, n_rows: int = 8192
) -> tuple[BagHeader, Iterator[NDArray[np.float16]]]:
    """A bag's header, and its features a block at a time, for bags larger than the memory.

    Args:
        place: What ``write_bag`` wrote.
        n_rows: Most tiles of a block, at least 1.

    Returns:
        The header; and (n, D) float16 blocks in the order of the tiles. The iterator raises
        BagError after the last one if their content does not match the bag's checksum.

    Raises:
        BagError: As ``read_bag_header``.
    """
    header = read_bag_header(place)
    if _is_zarr(place):
        blocks = zarr_blocks(_zarr_place(place), header, n_rows)
    else:
        blocks = hdf5_blocks(Path(place), header, n_rows)
    return header, _checked(place, header, blocks)


def _checked(
    place: str | Path, header: BagHeader, blocks: Iterator[NDArray[np.float16]]
) -> Iterator[NDArray[np.float16]]:
    shapes = ((len(header.coords), header.width), header.coords.shape)
    digest = hashlib.sha256(repr(shapes).encode())
    for block in blocks:
        digest.update(np.ascontiguousarray(block).data)
        yield block
    digest.update(np.ascontiguousarray(header.coords).data)
    if digest.hexdigest() != header.content_sha256:
        raise _changed(place)


def _changed(place: str | Path) -> BagError:
    rule = "its content does not match its checksum: the file was changed or is damaged"
    return BagError(place, f"{rule}. Delete it and embed the slide again.")


def has_bag(place: str | Path) -> bool:
    """Whether a finished bag is there; what it is made from is not looked at.

    Raises:
        BagError: If a bucket does not say.
    """
    return has_zarr(_zarr_place(place)) if _is_zarr(place) else Path(place).is_file()


def list_bags(folder: str | Path) -> dict[str, str]:
    """The place of each bag of a folder or URL by its slide_id, sorted; one listing.

    A Zarr bag that its writer did not finish is among them; ``has_bag`` tells.

    Raises:
        BagError: If there is no such folder, a bucket does not answer, or a slide has two bags.
    """
    found: dict[str, str] = {}
    for name in _names(folder):
        slide_id, _, suffix = name.rpartition(".")
        if slide_id in found:
            kept = f"{slide_id}.h5 and {slide_id}.zarr"
            raise BagError(folder, f"holds two bags of a slide: {kept}. Delete one of them.")
        store: Store = "zarr" if suffix == "zarr" else "hdf5"
        found[slide_id] = bag_place(folder, slide_id, store=store)
    return dict(sorted(found.items()))


def _names(folder: str | Path) -> list[str]:
    if is_remote(str(folder)):
        try:
            folders = list_folder(str(folder)).folders
        except SlideError as error:
            raise BagError(folder, error.message) from error
        return [name for name in folders if name.endswith(".zarr")]
    if not Path(folder).is_dir():
        raise BagError(folder, "no such folder of bags. Name the one that `embed tiles` wrote.")
    names = [name for name in whole_names(folder) if name.endswith(tuple(SUFFIXES.values()))]
    return [name for name in names if not name.startswith(".")]


def half_written(folder: str | Path) -> list[Path]:
    """What writers that were killed, or still write, left beside the bags of a folder."""
    if is_remote(str(folder)):
        return []
    parts = (part for pattern in PARTS for part in Path(folder).glob(pattern))
    return sorted([*parts, *superseded(folder)])


def clear_half_written(folder: str | Path, *, older_than_s: float) -> None:
    """Remove what killed writers left, but not what another process is writing now.

    Args:
        folder: Folder of bags; at a URL there is nothing to remove.
        older_than_s: Age, seconds, from which nobody writes to it any more.
    """
    for part in half_written(folder):
        try:
            age_s = time.time() - part.stat().st_mtime
        except FileNotFoundError:  # its writer has just finished
            continue
        if age_s <= older_than_s:
            continue
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def _is_zarr(place: str | Path) -> bool:
    return str(place).rstrip("/").endswith(".zarr") or is_remote(str(place))


def _zarr_place(place: str | Path) -> str:
    return str(place).rstrip("/")
