"""Many byte ranges as few requests: what lies close together is fetched as one piece."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from anlage.slides.storage.byte_source import Range


@dataclass(frozen=True, slots=True)
class Piece:
    """One request, and what of it belongs to whom.

    Attributes:
        offset: First byte in the file.
        count: Bytes to fetch.
        parts: (number of the range, first byte within the piece, bytes) of each range in it.
    """

    offset: int
    count: int
    parts: tuple[tuple[int, int, int], ...]


def merge_ranges(ranges: Sequence[Range], *, gap: int, longest: int) -> list[Piece]:
    """Requests that cover every range.

    Args:
        ranges: (offset, count) in any order; they may overlap or be equal, and count may be 0.
        gap: Bytes between two ranges up to which both are fetched as one.
        longest: Bytes beyond which a piece takes in no more; a longer range comes as it is.

    Returns:
        Pieces in the order of the file; none for ranges of no bytes.
    """
    pieces: list[Piece] = []
    start, end, parts = 0, 0, list[tuple[int, int, int]]()
    for i in sorted(range(len(ranges)), key=ranges.__getitem__):
        offset, count = ranges[i]
        if count == 0:
            continue
        is_near = offset <= end + gap and max(end, offset + count) - start <= longest
        if parts and not is_near:
            pieces.append(Piece(start, end - start, tuple(parts)))
            parts = []
        if not parts:
            start, end = offset, offset
        parts.append((i, offset - start, count))
        end = max(end, offset + count)
    if parts:
        pieces.append(Piece(start, end - start, tuple(parts)))
    return pieces


def cut_apart(pieces: Sequence[Piece], fetched: Sequence[bytes], n_ranges: int) -> list[bytes]:
    """The bytes of each range, from those of the pieces."""
    found = [b""] * n_ranges
    for piece, data in zip(pieces, fetched, strict=True):
        for i, start, count in piece.parts:
            found[i] = data[start : start + count]
    return found
