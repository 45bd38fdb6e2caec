"""Which DICOM files make one slide: those that carry the same SeriesInstanceUID.

A whole-slide scan is stored as one file a level (and more), which readers open together from any
of them. Only the head of a file is read, up to the tag; no pixel data.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

PREAMBLE_BYTES = 128
MAGIC = b"DICM"
FILE_META_GROUP = 0x0002
TRANSFER_SYNTAX = (0x0002, 0x0010)
SOP_CLASS = (0x0008, 0x0016)
SERIES = (0x0020, 0x000E)
ITEM, ITEM_END, SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
UNDEFINED_LENGTH = 0xFFFFFFFF
LONG_VALUES = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR"}
LONG_VALUES |= {b"UT", b"UV"}
IMPLICIT = "1.2.840.10008.1.2"
NOT_READ = {"1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"}  # big endian, deflated
SLIDE_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"
MAX_DEPTH = 16

Tag = tuple[int, int]


class _BrokenDicomError(Exception):
    """The bytes do not follow the standard, or follow a part of it that is not read here."""


def group_by_series(files: Iterable[Path]) -> list[tuple[Path, ...]]:
    """DICOM files of one folder, gathered into slides.

    Args:
        files: Files, in the order in which their slides are to come.

    Returns:
        Slides as tuples of their files. A file that is no whole-slide image, or cannot be
        understood, stands alone: opening it will tell why.
    """
    groups: dict[str, list[Path]] = {}
    for file in files:
        groups.setdefault(series_uid(file) or str(file), []).append(file)
    return [tuple(group) for group in groups.values()]


def is_dicom(path: str | Path) -> bool:
    """Whether a local file begins as DICOM files do."""
    try:
        with Path(path).open("rb") as file:
            file.seek(PREAMBLE_BYTES)
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def series_uid(path: Path) -> str | None:
    """The series a whole-slide image belongs to; None if the file is something else."""
    try:
        with path.open("rb") as file:
            return _read_series(file)
    except (OSError, struct.error, _BrokenDicomError, UnicodeDecodeError):
        return None


def _read_series(file: BinaryIO) -> str | None:
    file.seek(PREAMBLE_BYTES)
    if file.read(len(MAGIC)) != MAGIC:
        return None
    syntax = ""
    while True:
        position = file.tell()
        tag = _read_tag(file)
        if tag[0] != FILE_META_GROUP:
            file.seek(position)
            return (
                None if syntax in NOT_READ else _find_series(file, is_implicit=syntax == IMPLICIT)
            )
        value = file.read(_read_length(file, is_implicit=False))
        if tag == TRANSFER_SYNTAX:
            syntax = _text(value)


def _find_series(file: BinaryIO, *, is_implicit: bool) -> str | None:
    """Walk the data set's elements, which stand in ascending order, to the series."""
    is_slide = False
    while True:
        tag = _read_tag(file)
        if tag > SERIES:
            return None
        length = _read_length(file, is_implicit=is_implicit)
        if tag == SOP_CLASS:
            is_slide = _text(file.read(length)) == SLIDE_CLASS
        elif tag == SERIES:
            return _text(file.read(length)) if is_slide else None
        else:
            _skip(file, length, is_implicit=is_implicit, depth=0)


def _skip(file: BinaryIO, length: int, *, is_implicit: bool, depth: int) -> None:
    """Pass over a value; one of undefined length is a sequence of items, passed item by item."""
    if length != UNDEFINED_LENGTH:
        file.seek(length, 1)
        return
    if depth > MAX_DEPTH:
        raise _BrokenDicomError
    while True:
        tag = _read_tag(file)
        (item_length,) = struct.unpack("<I", file.read(4))
        if tag == SEQUENCE_END:
            return
        if tag != ITEM:
            raise _BrokenDicomError
        if item_length != UNDEFINED_LENGTH:
            file.seek(item_length, 1)
            continue
        _skip_item(file, is_implicit=is_implicit, depth=depth + 1)


def _skip_item(file: BinaryIO, *, is_implicit: bool, depth: int) -> None:
    while True:
        tag = _read_tag(file)
        if tag == ITEM_END:
            file.seek(4, 1)
            return
        length = _read_length(file, is_implicit=is_implicit)
        _skip(file, length, is_implicit=is_implicit, depth=depth)


def _read_tag(file: BinaryIO) -> Tag:
    group, element = struct.unpack("<HH", file.read(4))
    return group, element


def _read_length(file: BinaryIO, *, is_implicit: bool) -> int:
    if not is_implicit:
        kind = file.read(2)
        if kind not in LONG_VALUES:
            return int(struct.unpack("<H", file.read(2))[0])
        file.seek(2, 1)
    return int(struct.unpack("<I", file.read(4))[0])


def _text(value: bytes) -> str:
    return value.decode("ascii").strip("\0 ")
