"""The chain of a TIFF's page indexes, walked before anybody parses what is in them."""

from __future__ import annotations

import struct
from typing import NamedTuple

from anlage.errors import SlideError
from anlage.slides.file_bytes import FileBytes
from anlage.slides.reader import UnknownFormatError

MAX_PAGES = 10_000
NDPI_TAG = 65420  # beyond 4 GiB its links are twice as long as a TIFF's
MAX_TAGS = 4096  # a real page has a few dozen


class _Layout(NamedTuple):
    """How a TIFF, or a BigTIFF, writes its counts, links and tags."""

    count_form: str
    link_form: str
    tag_bytes: int


def refuse_broken_chain(file: FileBytes) -> None:
    """Follow every page's link to the next one, to its end.

    A parser that meets a broken link may stop there, and the slide would lose its lower levels
    without a word; or it may follow a circle for ever.

    Args:
        file: A file that may or may not be a TIFF.

    Raises:
        UnknownFormatError: If it is no TIFF.
        SlideError: If a link leads out of the file, back into the chain, or into no page.
    """
    layout, page = _header(file)
    seen: set[int] = set()
    while page:
        if page in seen or len(seen) >= MAX_PAGES:
            raise SlideError(file.path, f"is damaged: its index runs in a circle at byte {page}.")
        seen.add(page)
        n_tags = _number(file, page, layout.count_form)
        if not 0 < n_tags <= MAX_TAGS:
            raise SlideError(file.path, f"is damaged: a page of {n_tags} tags at byte {page}.")
        tags = range(page + struct.calcsize(layout.count_form), file.size, layout.tag_bytes)
        if len(seen) == 1 and _is_ndpi(file, tags[:n_tags], layout):
            raise UnknownFormatError(file.path, "ndpi files are left to OpenSlide.")
        page = _number(file, tags.start + n_tags * layout.tag_bytes, layout.link_form)


def _is_ndpi(file: FileBytes, tags: range, layout: _Layout) -> bool:
    return any(_number(file, tag, layout.count_form[0] + "H") == NDPI_TAG for tag in tags)


def _header(file: FileBytes) -> tuple[_Layout, int]:
    """How the file writes its numbers, and where its first page is."""
    magic = file.read(0, min(16, file.size))
    order = {b"II": "<", b"MM": ">"}.get(magic[:2])
    version = struct.unpack(f"{order}H", magic[2:4])[0] if order and len(magic) == 16 else 0
    if order is None or version not in {42, 43}:
        raise UnknownFormatError(file.path, "not a TIFF.")
    if version == 43:
        return _Layout(order + "Q", order + "Q", 20), _number(file, 8, order + "Q")
    return _Layout(order + "H", order + "I", 12), _number(file, 4, order + "I")


def _number(file: FileBytes, offset: int, form: str) -> int:
    size = struct.calcsize(form)
    if offset + size > file.size:
        raise SlideError(
            file.path,
            f"is cut short or damaged: its index goes on at byte {offset} of {file.size}. "
            "Copy it again from its source.",
        )
    return int(struct.unpack(form, file.read(offset, size))[0])
