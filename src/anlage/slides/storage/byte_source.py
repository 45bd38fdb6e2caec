"""Bytes of a slide by their place, wherever it lies: one interface to local and remote files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future
from typing import BinaryIO, ClassVar

from anlage.errors import SlideError
from anlage.slides.storage.location import is_remote

Range = tuple[int, int]  # offset, count


class SlideChangedError(SlideError):
    """The file is not the one that was opened or indexed."""


class NoRoomError(SlideError):
    """Copies of other slides, which are in use, leave no room for one of this slide."""


class ByteSource(ABC):
    """A file that is read by place from many threads at once, without a position of its own.

    Attributes:
        path: The location, as it was given.
        size: Length of the file, bytes.
        version: Changes whenever the content does: a remote file's ETag; of a local file its
            size and the time of its last change.
        is_remote: Whether a read is a request, so that many should be started together.
        is_confirmed: Something was read, so that this is known to be the file of ``version``.
    """

    path: str
    size: int
    version: str
    is_remote: ClassVar[bool]
    is_confirmed: bool = True

    @abstractmethod
    def read(self, offset: int, count: int) -> bytes:
        """Exactly ``count`` bytes from ``offset``.

        Raises:
            SlideError: If they cannot be had; it says why.
        """

    @abstractmethod
    def read_many(self, ranges: Sequence[Range]) -> list[bytes]:
        """The bytes of each (offset, count), in that order, read with as few calls as pay.

        Raises:
            SlideError: If any of them cannot be had.
        """

    @abstractmethod
    def start(self, ranges: Sequence[Range]) -> Future[list[bytes]] | None:
        """Begin ``read_many`` in the background and return at once; None: there is no need to."""

    @abstractmethod
    def as_file(self) -> BinaryIO:
        """A seekable file for parsers, to be used by one thread and closed."""


def open_bytes(location: str, *, version: str | None = None, size: int | None = None) -> ByteSource:
    """Open a local path or a URL.

    Args:
        location: Where the file is.
        version: Of a remote file, if known: another one there is refused when it is read.
        size: Of a remote file, bytes, if known. With both no request is made.

    Raises:
        SlideError: If it does not exist, or cannot be reached.
    """
    if is_remote(location):
        from anlage.slides.storage.object_store import RemoteBytes

        return RemoteBytes(location, version=version, size=size)
    from anlage.slides.storage.file_bytes import FileBytes

    return FileBytes(location)
