"""The parsed index of a remote TIFF kept on disk, so that opening it again asks for nothing."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import safetensors.numpy
from safetensors import SafetensorError

from anlage.files import replace_whole
from anlage.slides.formats.tiff_index import TiffIndex
from anlage.slides.formats.typed_packing import Arrays, outline, pack, unpack
from anlage.slides.storage.cache_folder import cache_folder, key_of

FORMAT = "tiff-sidecar/1"
DIGEST_BYTES = 32
MAX_BYTES = 4 * 2**30  # of all sidecars together: two thousand of the largest slides and more
LOOK_EVERY = 100  # sidecars written between two looks at how much there is
LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What is known of a remote slide without asking for it.

    Attributes:
        version: Of the file that the index was parsed from.
        size: Its length, bytes.
        index: Its index.
    """

    version: str
    size: int
    index: TiffIndex


def load_sidecar(location: str) -> Sidecar | None:
    """The sidecar of a location; None if there is none, or it is damaged or of other code."""
    path = _path(location)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        LOGGER.warning("%s: cannot be read (%s); the slide is parsed again", path, error.strerror)
        return None
    try:
        return _unpacked(location, data)
    except (ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        LOGGER.warning("%s: is damaged (%s) and will be made again", path, error)
        return None


def save_sidecar(location: str, sidecar: Sidecar) -> None:
    """Keep an index, whole or not at all; a cache that cannot be written to is only logged."""
    arrays: Arrays = {}
    about = {
        "format": _layout(),
        "location": location,
        "version": sidecar.version,
        "size": sidecar.size,
        "index": pack(sidecar.index, arrays),
    }
    body = safetensors.numpy.save(arrays, {"about": json.dumps(about)})
    path = _path(location)
    try:
        with replace_whole(path) as beside:
            beside.write_bytes(hashlib.sha256(body).digest() + body)
        _LIMIT.look(path.parent)
    except OSError as error:
        LOGGER.warning("%s: cannot be written (%s)", path, error.strerror)


def drop_sidecar(location: str) -> None:
    """Forget what is known of a location; a cache that cannot be written to is only logged."""
    path = _path(location)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        LOGGER.warning("%s: cannot be removed (%s)", path, error.strerror)


def _unpacked(location: str, data: bytes) -> Sidecar | None:
    digest, body = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        msg = "its bytes are not those that were written"
        raise ValueError(msg)
    length = int.from_bytes(body[:8], "little")  # safetensors: length, JSON header, arrays
    about = json.loads(json.loads(body[8 : 8 + length])["__metadata__"]["about"])
    if about["format"] != _layout() or about["location"] != location:
        return None
    index: TiffIndex = unpack(TiffIndex, about["index"], safetensors.numpy.load(body))
    return Sidecar(str(about["version"]), int(about["size"]), index)


@cache
def _layout() -> str:
    """The format, and what the classes that it holds look like: other code parses anew."""
    return f"{FORMAT} {hashlib.sha256(outline(TiffIndex).encode()).hexdigest()[:16]}"


def _path(location: str) -> Path:
    return cache_folder("indexes") / f"{key_of(location)}.sidecar"


class _Limit:
    """Keeps the folder below ``MAX_BYTES`` by removing what was written first."""

    def __init__(self) -> None:
        self._written = itertools.count()  # no lock, which a forked child might find held

    def look(self, folder: Path) -> None:
        if next(self._written) % LOOK_EVERY == 0:
            remove_oldest(folder, max_bytes=MAX_BYTES)


_LIMIT = _Limit()


def remove_oldest(folder: Path, *, max_bytes: int) -> None:
    """Remove the sidecars that were written first until those left take at most ``max_bytes``."""
    found = []
    for path in folder.glob("*.sidecar"):
        try:
            state = path.stat()
        except FileNotFoundError:  # another process was first
            continue
        found.append((state.st_mtime, state.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= max_bytes:
            return
        path.unlink(missing_ok=True)
        total -= size
