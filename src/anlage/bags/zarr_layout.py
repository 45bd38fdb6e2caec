"""A bag as the objects of a Zarr v3 group, by name: the bytes of each, and back.

    zarr.json            attributes as of the HDF5 file, and the metadata below it: written last
    features/zarr.json   (L, D) float16, little endian, not compressed, chunks of 512 tiles
    features/c/0/0       its one shard: the chunks, then their places, then a CRC-32C of these
    coords/zarr.json     (L, 2) int64, with TRIDENT's attributes
    coords/c/0/0         its one chunk

A bag of 0 tiles has neither shard nor chunk.
Source: Zarr core specification 3.0, its ``sharding_indexed``, ``bytes`` and ``crc32c`` codecs.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
from anlage.bags.crc32c import crc32c
from anlage.errors import BagError

MARKER = "zarr.json"
SHARD, COORDS = "features/c/0/0", "coords/c/0/0"
CHUNK_ROWS = 512  # of width 1,536: 1.5 MB a chunk
CUT_SHORT = "its shard is cut short or was changed. Delete it and embed the slide again."
LITTLE_ENDIAN = {"name": "bytes", "configuration": {"endian": "little"}}
Json = dict[str, Any]


def zarr_objects(bag: Bag) -> dict[str, bytes | memoryview]:
    """Name and content of each object of a bag in its stored types; the marker is the last."""
    n_tiles, width = bag.features.shape
    feature_attributes = {"name": bag.slide_id}
    if bag.attributes.encoder_name:
        feature_attributes["encoder"] = bag.attributes.encoder_name
    arrays = {
        "features": _features_metadata(n_tiles, width) | {"attributes": feature_attributes},
        "coords": _coords_metadata(n_tiles) | {"attributes": trident_attributes(bag)},
    }
    objects: dict[str, bytes | memoryview] = {}
    if n_tiles:
        objects[SHARD] = _shard(bag.features)
        objects[COORDS] = np.ascontiguousarray(bag.coords, "<i8").tobytes()
    for name, metadata in arrays.items():
        objects[f"{name}/zarr.json"] = _text(metadata)
    attributes = bag.attributes.as_json() | {
        "format": FORMAT,
        "slide_id": bag.slide_id,
        "tile_level0_px": bag.attributes.tile_level0_px,
        "content_sha256": content_sha256(bag.features, bag.coords),
    }
    consolidated = {"kind": "inline", "must_understand": False, "metadata": arrays}
    group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    return objects | {MARKER: _text(group | {"consolidated_metadata": consolidated})}


def _text(value: Json) -> bytes:
    return json.dumps(value, indent=1, allow_nan=False).encode()


def _array_metadata(shape: list[int], dtype: str, chunk: list[int], codecs: list[Json]) -> Json:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": codecs,
        "storage_transformers": [],
    }


def _features_metadata(n_tiles: int, width: int) -> Json:
    rows = chunk_rows(n_tiles)
    sharding = {
        "chunk_shape": [rows, width],
        "codecs": [LITTLE_ENDIAN],
        "index_codecs": [LITTLE_ENDIAN, {"name": "crc32c"}],
        "index_location": "end",
    }
    codecs = [{"name": "sharding_indexed", "configuration": sharding}]
    shard = [n_chunks(n_tiles) * rows, width]
    return _array_metadata([n_tiles, width], "float16", shard, codecs)


def _coords_metadata(n_tiles: int) -> Json:
    return _array_metadata([n_tiles, 2], "int64", [max(n_tiles, 1), 2], [LITTLE_ENDIAN])


def chunk_rows(n_tiles: int) -> int:
    """Tiles of a chunk."""
    return min(CHUNK_ROWS, max(n_tiles, 1))


def n_chunks(n_tiles: int) -> int:
    """Chunks of the shard; the last one is filled up with zeros."""
    return max(-(-n_tiles // chunk_rows(n_tiles)), 1)


def _shard(features: NDArray[Any]) -> bytes:
    n_tiles, width = features.shape
    data = np.ascontiguousarray(features, "<f2").tobytes()
    start, end = shard_end(n_tiles, width)
    return b"".join([data, bytes(start - len(data)), end])


def shard_end(n_tiles: int, width: int) -> tuple[int, bytes]:
    """Where the index of a shard begins, and all bytes from there."""
    count, chunk_bytes = n_chunks(n_tiles), chunk_rows(n_tiles) * width * 2
    index = b"".join(struct.pack("<QQ", i * chunk_bytes, chunk_bytes) for i in range(count))
    return count * chunk_bytes, index + struct.pack("<I", crc32c(index))


def parse_marker(place: str | Path, text: bytes) -> tuple[Json, int, int]:
    """Attributes, number of tiles L and width D of a bag, from its ``zarr.json``.

    Raises:
        BagError: If it is no bag, or not laid out as above.
    """
    try:
        found = json.loads(text)
        stored = found["attributes"]
        arrays = found["consolidated_metadata"]["metadata"]
        n_tiles, width = (int(size) for size in arrays["features"]["shape"])
        metadata = [{k: v for k, v in arrays[name].items() if k != "attributes"} for name in arrays]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"is no bag, or its zarr.json is damaged ({error}). Embed the slide again."
        raise BagError(place, msg) from error
    if stored.get("format") != FORMAT:
        msg = f"needs format {FORMAT!r}; got {stored.get('format')!r}. Convert it first."
        raise BagError(place, msg)
    if metadata != [_features_metadata(n_tiles, width), _coords_metadata(n_tiles)]:
        msg = "is not laid out as a bag: another program wrote it anew. Embed the slide again."
        raise BagError(place, msg)
    return stored, n_tiles, width


def parse_coords(place: str | Path, data: bytes, n_tiles: int) -> NDArray[np.int64]:
    """Corners, (L, 2) int64, from the object ``COORDS``.

    Raises:
        BagError: If it is cut short.
    """
    if len(data) != n_tiles * 16:
        msg = f"its coords need {n_tiles * 16} bytes; got {len(data)}. Embed the slide again."
        raise BagError(place, msg)
    return np.frombuffer(data, "<i8").reshape(n_tiles, 2).astype(np.int64)


def parse_shard(place: str | Path, data: bytes, n_tiles: int, width: int) -> NDArray[np.float16]:
    """Features, (L, D) float16, from the object ``SHARD``.

    Raises:
        BagError: If it is cut short, or its index is not what it was written with.
    """
    start, end = shard_end(n_tiles, width)
    if data[start:] != end:
        raise BagError(place, CUT_SHORT)
    values = np.frombuffer(data, "<f2", count=n_tiles * width)
    return values.reshape(n_tiles, width).astype(np.float16)


def header_of(
    place: str | Path, stored: Mapping[str, Any], coords: NDArray[np.int64], width: int
) -> BagHeader:
    """The header of a bag from its parsed parts.

    Raises:
        BagError: If an attribute is missing.
    """
    slide_id, checksum = stored.get("slide_id"), stored.get("content_sha256")
    if not isinstance(slide_id, str) or not isinstance(checksum, str):
        msg = "needs attributes slide_id and content_sha256. Embed the slide again."
        raise BagError(place, msg)
    return BagHeader(slide_id, width, coords, attributes_from(place, stored), checksum)
