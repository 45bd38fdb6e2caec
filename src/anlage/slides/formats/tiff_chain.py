"""The chain of a TIFF's page indexes, walked before anybody parses what is in them."""

from __future__ import annotations

import struct
from typing import BinaryIO, NamedTuple

from anlage.errors import SlideError
from anlage.slides.reader import UnknownFormatError
from anlage.slides.storage.byte_source import ByteSource

MAX_PAGES = 10_000
NDPI_TAG = 65420  # beyond 4 GiB its links are twice as long as a TIFF's
MAX_TAGS = 4096  # a real page has a few dozen


class _Layout(NamedTuple):
    """How a TIFF, or a BigTIFF, writes its counts, links and tags."""

    count_form: str
    link_form: str
    tag_bytes: int


def refuse_broken_chain(source: ByteSource) -> None:
    """Follow every page's link to the next one, to its end.

    A parser that meets a broken link may stop there, and the slide would lose its lower levels
    without a word; or it may follow a circle for ever.

    Args:
        source: A file that may or may not be a TIFF.

    Raises:
        UnknownFormatError: If it is no TIFF.
        SlideError: If a link leads out of the file, back into the chain, or into no page.
    """
    with source.as_file() as file:
        _follow(_Numbers(source, file))


class _Numbers(NamedTuple):
    """The file, to take single numbers from."""

    source: ByteSource
    file: BinaryIO

    def bytes_at(self, offset: int, count: int) -> bytes:
        path, size = self.source.path, self.source.size
        if offset + count > size:
            raise SlideError(
                path,
                f"is cut short or damaged: its index goes on at byte {offset} of {size}. "
                "Copy it again from its source.",
            )
        self.file.seek(offset)
        return self.file.read(count)

    def number(self, offset: int, form: str) -> int:
        return int(struct.unpack(form, self.bytes_at(offset, struct.calcsize(form)))[0])


def _follow(numbers: _Numbers) -> None:
    path, size = numbers.source.path, numbers.source.size
    layout, page = _header(numbers)
    seen: set[int] = set()
    while page:
        if page in seen or len(seen) >= MAX_PAGES:
            raise SlideError(path, f"is damaged: its index runs in a circle at byte {page}.")
        seen.add(page)
        n_tags = numbers.number(page, layout.count_form)
        if not 0 < n_tags <= MAX_TAGS:
            raise SlideError(path, f"is damaged: a page of {n_tags} tags at byte {page}.")
        tags = range(page + struct.calcsize(layout.count_form), size, layout.tag_bytes)
        if len(seen) == 1 and _is_ndpi(numbers, tags[:n_tags], layout):
            raise UnknownFormatError(path, "ndpi files are left to OpenSlide.")
        page = numbers.number(tags.start + n_tags * layout.tag_bytes, layout.link_form)


def _is_ndpi(numbers: _Numbers, tags: range, layout: _Layout) -> bool:
    return any(numbers.number(tag, layout.count_form[0] + "H") == NDPI_TAG for tag in tags)


def _header(numbers: _Numbers) -> tuple[_Layout, int]:
    """How the file writes its numbers, and where its first page is."""
    path, size = numbers.source.path, numbers.source.size
    magic = numbers.bytes_at(0, min(16, size))
    order = {b"II": "<", b"MM": ">"}.get(magic[:2])
    version = struct.unpack(f"{order}H", magic[2:4])[0] if order and len(magic) == 16 else 0
    if order is None or version not in {42, 43}:
        raise UnknownFormatError(path, "not a TIFF.")
    if version == 43:
        return _Layout(order + "Q", order + "Q", 20), numbers.number(8, order + "Q")
    return _Layout(order + "H", order + "I", 12), numbers.number(4, order + "I")
