"""Packs: tar files to which every slide's pictures are appended as soon as it has been examined.

A slide is three members with one name: ``.mask.png``, ``.thumbnail.jpg`` and last ``.json``, its
row of the catalogue. Once the last is whole, the slide is finished: an index that was killed finds
it there and goes on. A pack is never changed afterwards, so adding slides rewrites nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

BLOCK_BYTES = 512
PACK_BYTES = 2**30  # a new pack is begun beyond it
PACK_SUFFIX = ".tar"
MASK, THUMBNAIL, RECORD = ".mask.png", ".thumbnail.jpg", ".json"


@dataclass(frozen=True, slots=True)
class Pictures:
    """What is kept of a slide's look.

    Attributes:
        mask_png: 1-bit PNG of the tissue mask.
        thumbnail_jpeg: The slide, small.
    """

    mask_png: bytes
    thumbnail_jpeg: bytes


def member_name(fingerprint: str, ending: str) -> str:
    """Name of a slide's member in a pack: by its content, so that another's is recognised."""
    return hashlib.sha256(fingerprint.encode()).hexdigest()[:32] + ending


def read_member(file: BinaryIO, offset: int) -> tuple[str, bytes, int]:
    """One member of a pack: its name, its bytes, where the next begins.

    Raises:
        EOFError: If the pack ends within it.
        tarfile.HeaderError: If no member begins there.
    """
    file.seek(offset)
    head = _exactly(file, BLOCK_BYTES)
    info = tarfile.TarInfo.frombuf(head, encoding="utf-8", errors="strict")
    content = _exactly(file, info.size)
    return info.name, content, offset + BLOCK_BYTES + _padded(info.size)


class PackWriter:
    """Appends slides to new packs of a folder; used by one process at a time.

    Attributes:
        folder: Where the packs lie; made at the first slide.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: BinaryIO | None = None
        self._name, self._end = "", 0

    def add(self, key: str, row: Mapping[str, Any], pictures: Pictures) -> dict[str, Any]:
        """Append a slide; when this returns, it outlives the process.

        Args:
            key: What was read, and how.
            row: Its measured columns, of values that JSON can hold.
            pictures: Its mask and thumbnail.

        Returns:
            The row, with where the pictures are and the key.

        Raises:
            OSError: If the disk is full.
        """
        if self._file is None or self._end > PACK_BYTES:
            self._begin()
        assert self._file is not None
        placed = {
            **row,
            "mask_pack": self._name,
            "mask_offset": self._end,
            "index_key": key,
        }
        told = {"row": placed, "crc32": _checksum(pictures)}
        content = b"".join(
            _member(member_name(row["fingerprint"], ending), value)
            for ending, value in (
                (MASK, pictures.mask_png),
                (THUMBNAIL, pictures.thumbnail_jpeg),
                (RECORD, json.dumps(told).encode()),
            )
        )
        self._file.write(content)
        self._file.flush()
        self._end += len(content)
        return placed

    def close(self) -> None:
        """End the pack and put it on disk."""
        if self._file is not None:
            self._file.write(bytes(2 * BLOCK_BYTES))  # tar's mark of the end
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def _begin(self) -> None:
        self.close()
        self.folder.mkdir(parents=True, exist_ok=True)
        numbers = [int(pack.stem) for pack in packs_of(self.folder)]
        self._name = f"{max(numbers, default=-1) + 1:06d}{PACK_SUFFIX}"
        self._file, self._end = (self.folder / self._name).open("xb"), 0


def packs_of(folder: Path) -> list[Path]:
    """The packs of a folder, oldest first."""
    return sorted(path for path in folder.glob(f"*{PACK_SUFFIX}") if path.stem.isdigit())


def finished_rows(pack: Path) -> Iterator[dict[str, Any]]:
    """The rows of a pack's whole slides; what a killed process left half-written is passed over."""
    with pack.open("rb") as file:
        offset, pictures = 0, dict.fromkeys((MASK, THUMBNAIL), b"")
        while True:
            try:
                name, content, offset = read_member(file, offset)
            except (EOFError, tarfile.HeaderError):
                return
            ending = name[name.index(".") :]
            if ending != RECORD:
                pictures[ending] = content
                continue
            try:
                told = json.loads(content)
            except ValueError:  # after a power cut there may be a hole of zeros in its place
                continue
            if told["crc32"] == _checksum(Pictures(pictures[MASK], pictures[THUMBNAIL])):
                yield told["row"]


def remove_packs(folder: Path, *, keep: Iterable[str]) -> None:
    """Delete the packs of a folder that no row names."""
    kept = set(keep)
    for pack in packs_of(folder):
        if pack.name not in kept:
            pack.unlink()


def _member(name: str, content: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    padding = bytes(_padded(len(content)) - len(content))
    return info.tobuf(tarfile.USTAR_FORMAT) + content + padding


def _padded(n_bytes: int) -> int:
    return -(-n_bytes // BLOCK_BYTES) * BLOCK_BYTES


def _exactly(file: BinaryIO, n_bytes: int) -> bytes:
    content = file.read(n_bytes)
    if len(content) != n_bytes:
        raise EOFError
    return content


def _checksum(pictures: Pictures) -> int:
    return zlib.crc32(pictures.thumbnail_jpeg, zlib.crc32(pictures.mask_png))
