"""A bag as a Zarr v3 group, by the package zarr: the objects it consists of, and back.

    zarr.json            attributes as of the HDF5 file, and the metadata below it: written last
    features/zarr.json   (L, D) float16, not compressed, chunks of 512 tiles
    features/c/0/0       its one shard
    coords/zarr.json     (L, 2) int64, with TRIDENT's attributes
    coords/c/0/0         its one chunk

A bag of 0 tiles has neither shard nor chunk. Imported where a Zarr bag is written or read: the
import of zarr takes a second.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import MemoryStore, WrapperStore

from anlage.bags.bag import (
    FORMAT,
    Bag,
    BagHeader,
    attributes_from,
    content_sha256,
    trident_attributes,
)
from anlage.errors import AnlageError, BagError
from anlage.slides.storage.byte_source import ByteSource

METADATA = "zarr.json"
CHUNK_ROWS = 512  # of width 1,536: 1.5 MB a chunk
PIECE_BYTES = 2**23  # of an object, a request each
AGAIN = "Delete it and embed the slide again."


def zarr_objects(bag: Bag) -> dict[str, bytes | memoryview]:
    """Name and content of each object of a bag in its stored types; the group's is the last."""
    attributes = bag.attributes.as_json() | {
        "format": FORMAT,
        "slide_id": bag.slide_id,
        "tile_level0_px": bag.attributes.tile_level0_px,
        "content_sha256": content_sha256(bag.features, bag.coords),
    }
    kept: dict[str, Buffer] = {}
    group = zarr.create_group(MemoryStore(kept), zarr_format=3, attributes=attributes)
    _add_features(group, bag)
    _add_array(group, "coords", bag.coords, len(bag.coords), attributes=trident_attributes(bag))
    objects = {name: memoryview(kept[name].as_buffer_like()) for name in sorted(kept)}
    marker = json.loads(bytes(objects.pop(METADATA))) | {
        "consolidated_metadata": {
            "kind": "inline",
            "must_understand": False,
            "metadata": {
                name: json.loads(bytes(objects[f"{name}/{METADATA}"]))
                for name in ("coords", "features")
            },
        }
    }
    return objects | {METADATA: json.dumps(marker, indent=1, allow_nan=False).encode()}


def _add_features(group: zarr.Group, bag: Bag) -> None:
    named = {"name": bag.slide_id}
    if bag.attributes.encoder_name:
        named["encoder"] = bag.attributes.encoder_name
    _add_array(group, "features", bag.features, CHUNK_ROWS, is_sharded=True, attributes=named)


def _add_array(
    group: zarr.Group,
    name: str,
    values: NDArray[Any],
    most_rows: int,
    *,
    attributes: dict[str, Any],
    is_sharded: bool = False,
) -> None:
    """Write one array in chunks of whole rows, none left out for being zero."""
    n_rows, width = values.shape
    rows = min(most_rows, n_rows) or 1
    n_chunks = max(-(-n_rows // rows), 1)
    array = group.create_array(
        name,
        shape=values.shape,
        dtype=values.dtype,
        chunks=(rows, width),
        shards=(n_chunks * rows, width) if is_sharded else None,
        compressors=None,
        fill_value=0,
        attributes=attributes,
        config={"write_empty_chunks": True},
    )
    if n_rows:
        array[:] = values


class BagObjects(WrapperStore[MemoryStore]):
    """The objects of a bag, read when zarr asks for them; one that is not there is an error.

    To zarr a chunk that is not there, or is empty, is full of zeros.

    Args:
        open_object: Opens an object by its name in the bag.
    """

    def __init__(self, open_object: Callable[[str], ByteSource]) -> None:
        super().__init__(MemoryStore(read_only=True))
        self._open_object = functools.cache(open_object)

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """What zarr asks for, by a thread, so that several are read at the same time."""
        data = await asyncio.to_thread(self._read, key, byte_range)
        return (prototype or default_buffer_prototype()).buffer.from_bytes(data)

    def _read(self, key: str, wanted: ByteRequest | None) -> bytes:
        source = self._open_object(key)
        start, stop = 0, source.size
        if not stop:
            msg = f"{key} is empty"
            raise ValueError(msg)
        if isinstance(wanted, RangeByteRequest):
            start, stop = wanted.start, min(wanted.end, stop)
        elif isinstance(wanted, OffsetByteRequest):
            start = wanted.offset
        elif isinstance(wanted, SuffixByteRequest):
            start = max(stop - wanted.suffix, 0)
        pieces = [(at, min(PIECE_BYTES, stop - at)) for at in range(start, stop, PIECE_BYTES)]
        return b"".join(source.read_many(pieces))


class ZarrBag:
    """A bag that is there, opened by its ``zarr.json``.

    Args:
        place: For errors.
        open_object: Opens an object by its name in the bag; raises BagError if it is not there.

    Raises:
        BagError: If it is no bag.
        SlideError: If an object cannot be read; of the methods too.
    """

    def __init__(self, place: str, open_object: Callable[[str], ByteSource]) -> None:
        self.place = place
        with _refusing(place, "is no bag, or its zarr.json is damaged ({}). Embed it again."):
            store = BagObjects(open_object)
            group = zarr.open_group(store, mode="r", zarr_format=3, use_consolidated=True)
            self._stored = dict(group.attrs)
            arrays = group["features"], group["coords"]
        if self._stored.get("format") != FORMAT:
            msg = f"needs format {FORMAT!r}; got {self._stored.get('format')!r}. Convert it first."
            raise BagError(place, msg)
        self._features, self._coords = (self._array(array) for array in arrays)
        shape, kinds = self._features.shape, (self._features.dtype, self._coords.dtype)
        is_a_bag = len(shape) == 2 and self._coords.shape == (shape[0], 2)
        if not is_a_bag or kinds != (np.dtype(np.float16), np.dtype(np.int64)):
            found = f"features {shape} {kinds[0]} and coords {self._coords.shape} {kinds[1]}"
            raise BagError(place, f"is not laid out as a bag: {found}. {AGAIN}")

    def _array(self, found: object) -> zarr.Array[Any]:
        if not isinstance(found, zarr.Array):
            raise BagError(self.place, f"is not laid out as a bag: got {found}. {AGAIN}")
        return found

    def header(self) -> BagHeader:
        """All but the features.

        Raises:
            BagError: If the coords are damaged or an attribute is missing.
        """
        slide_id, checksum = self._stored.get("slide_id"), self._stored.get("content_sha256")
        if not isinstance(slide_id, str) or not isinstance(checksum, str):
            msg = "needs attributes slide_id and content_sha256. Embed the slide again."
            raise BagError(self.place, msg)
        attributes = attributes_from(self.place, self._stored)
        with _refusing(self.place, f"its coords are cut short or were changed. {AGAIN}"):
            coords = np.asarray(self._coords[:], np.int64)
        return BagHeader(slide_id, self._features.shape[1], coords, attributes, checksum)

    def features(self, first: int = 0, stop: int | None = None) -> NDArray[np.float16]:
        """Features of the tiles from ``first`` to before ``stop``, (n, D) float16.

        Raises:
            BagError: If they are cut short, or the index of their shard was changed.
        """
        with _refusing(self.place, f"its shard is cut short or was changed. {AGAIN}"):
            return np.asarray(self._features[first:stop], np.float16)


@contextmanager
def _refusing(place: str, message: str) -> Iterator[None]:
    try:
        yield
    except AnlageError:
        raise
    except Exception as error:  # zarr passes on whatever its parsers and codecs raise
        raise BagError(place, message.format(error)) from error
