"""Bytes of a local file by their place, from many threads at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future
from typing import BinaryIO, ClassVar

from anlage.errors import SlideError
from anlage.slides.storage.byte_source import ByteSource, Range, SlideChangedError


class FileBytes(ByteSource):
    """A file that is read by ``pread``: no position is shared, so threads need no lock.

    The descriptor is closed when the last reference goes, hence never under a read in another
    thread, where the number might by then belong to some other file.

    Args:
        path: The file.

    Attributes:
        size: Length of the file when it was opened, bytes.

    Raises:
        SlideError: If the system does not open the file.
    """

    is_remote: ClassVar[bool] = False

    def __init__(self, path: str) -> None:
        self._descriptor = -1
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            state = os.fstat(self._descriptor)
        except OSError as error:
            raise SlideError(path, f"cannot be opened: {error.strerror}.") from error
        self.size = state.st_size
        self.version = _version(state)

    def read(self, offset: int, count: int) -> bytes:
        """Exactly ``count`` bytes from ``offset``.

        Raises:
            SlideError: If the file has become shorter than that, or the disk fails.
        """
        try:
            data = os.pread(self._descriptor, count, offset)
        except OSError as error:
            place = f"{count} bytes at {offset}"
            raise SlideError(self.path, f"cannot read {place}: {error.strerror}.") from error
        if len(data) != count:
            raise SlideError(
                self.path,
                f"needs {count} bytes at {offset}; got {len(data)}. It has been cut since it was "
                "opened; copy it again from its source.",
            )
        return data

    def read_many(self, ranges: Sequence[Range]) -> list[bytes]:
        """The bytes of each (offset, count), in that order, one call each.

        Reading neighbours at once and cutting them apart saved 7 % of a few microseconds.
        """
        return [self.read(offset, count) for offset, count in ranges]

    def start(self, ranges: Sequence[Range]) -> Future[list[bytes]] | None:
        """None: the system reads ahead by itself."""
        return None

    def as_file(self) -> BinaryIO:
        """The file anew, with a position of its own.

        Raises:
            SlideChangedError: If another has taken its place since.
            SlideError: If the system does not open it.
        """
        try:
            file = open(self.path, "rb")  # noqa: PTH123, SIM115 - the caller closes it
        except OSError as error:
            raise SlideError(self.path, f"cannot be opened: {error.strerror}.") from error
        if _version(os.fstat(file.fileno())) != self.version:
            file.close()
            raise SlideChangedError(self.path, "has changed since it was opened. Open it again.")
        return file

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


def _version(state: os.stat_result) -> str:
    return f"{state.st_size:x}-{state.st_mtime_ns:x}"
