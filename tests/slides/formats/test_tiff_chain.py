from __future__ import annotations

import struct
from pathlib import Path

import pytest

from anlage.errors import SlideError
from anlage.slides.formats.tiff_chain import refuse_broken_chain
from anlage.slides.reader import UnknownFormatError
from anlage.slides.storage.file_bytes import FileBytes


def tiff(tmp_path: Path, links: list[int], *, tag: int = 256) -> FileBytes:
    """A TIFF of one-tag pages of 18 bytes each, the first at byte 8, linked as given."""
    data = b"II*\0" + struct.pack("<I", 8)
    for link in links:
        data += struct.pack("<H", 1) + struct.pack("<HHII", tag, 4, 1, 7) + struct.pack("<I", link)
    path = tmp_path / "a.tiff"
    path.write_bytes(data)
    return FileBytes(str(path))


def test_a_whole_chain_is_let_through(tmp_path: Path) -> None:
    refuse_broken_chain(tiff(tmp_path, [26, 44, 0]))


@pytest.mark.parametrize("links", [[8], [26, 8], [26, 44, 26]])
def test_a_circle(tmp_path: Path, links: list[int]) -> None:
    with pytest.raises(SlideError, match="runs in a circle"):
        refuse_broken_chain(tiff(tmp_path, links))


@pytest.mark.parametrize("links", [[10_000], [26, 44, 61]])
def test_a_link_out_of_the_file(tmp_path: Path, links: list[int]) -> None:
    with pytest.raises(SlideError, match=r"cut short or damaged: its index goes on at byte \d+ of"):
        refuse_broken_chain(tiff(tmp_path, links))


def test_a_link_into_no_page(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="a page of 0 tags at byte 16"):
        refuse_broken_chain(tiff(tmp_path, [16, 0, 0]))


def test_ndpi_is_left_to_others(tmp_path: Path) -> None:
    with pytest.raises(UnknownFormatError, match="left to OpenSlide"):
        refuse_broken_chain(tiff(tmp_path, [10_000], tag=65420))


@pytest.mark.parametrize("data", [b"", b"I", b"II*\0", b"\x89PNG" + bytes(20), b"II\x2c\0" * 9])
def test_no_tiff(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(UnknownFormatError, match="not a TIFF"):
        refuse_broken_chain(FileBytes(str(tmp_path / "a")))
