from __future__ import annotations

import os
from pathlib import Path

import pytest

from anlage.errors import SlideError
from anlage.slides.storage.byte_source import SlideChangedError
from anlage.slides.storage.file_bytes import FileBytes


def test_reads_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(range(100)))
    file = FileBytes(str(tmp_path / "a"))
    assert file.size == 100
    assert file.read(7, 3) == bytes([7, 8, 9])
    assert file.read(0, 100) == bytes(range(100))


@pytest.mark.parametrize(("offset", "count"), [(98, 3), (100, 1), (5000, 1)])
def test_a_short_read_is_refused(tmp_path: Path, offset: int, count: int) -> None:
    (tmp_path / "a").write_bytes(bytes(100))
    with pytest.raises(SlideError, match=rf"needs {count} bytes at {offset}; got"):
        FileBytes(str(tmp_path / "a")).read(offset, count)


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="cannot be opened: No such file"):
        FileBytes(str(tmp_path / "none"))


def test_the_descriptor_goes_with_the_last_reference(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    file = FileBytes(str(tmp_path / "a"))
    descriptor = file._descriptor
    os.fstat(descriptor)
    del file
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_reads_many_places(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(range(100)))
    file = FileBytes(str(tmp_path / "a"))
    assert file.read_many([(90, 2), (3, 1), (0, 0), (3, 2)]) == [b"Z[", b"\3", b"", b"\3\4"]
    assert file.start([(0, 1)]) is None
    with file.as_file() as opened:
        assert opened.read() == bytes(range(100))


def test_the_version_changes_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    first = FileBytes(str(tmp_path / "a")).version
    assert FileBytes(str(tmp_path / "a")).version == first
    os.utime(tmp_path / "a", ns=(1, 1))
    assert FileBytes(str(tmp_path / "a")).version != first


def test_a_parser_gets_the_same_file_or_none(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    file = FileBytes(str(path))
    (tmp_path / "b").write_bytes(b"another")
    (tmp_path / "b").replace(path)
    with pytest.raises(SlideChangedError, match="has changed since it was opened. Open it again"):
        file.as_file()
    path.unlink()
    with pytest.raises(SlideError, match="cannot be opened: No such file"):
        file.as_file()
    assert file.read(0, 3) == b"abc"
