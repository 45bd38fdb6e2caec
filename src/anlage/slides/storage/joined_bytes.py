"""Several local files read as if they stood one behind the other."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import Future
from io import BytesIO
from itertools import accumulate
from typing import BinaryIO, ClassVar

from anlage.slides.storage.byte_source import ByteSource, Range
from anlage.slides.storage.file_bytes import FileBytes


class JoinedBytes(ByteSource):
    """The files of one slide as one: a place in the second begins where the first ends.

    Args:
        path: What the slide is called by.
        files: At least one, in the order in which they are joined.

    Attributes:
        starts: Where each file begins, bytes.

    Raises:
        SlideError: If the system does not open one of the files.
    """

    is_remote: ClassVar[bool] = False

    def __init__(self, path: str, files: Sequence[str]) -> None:
        self.path = path
        self._files = [FileBytes(file) for file in files]
        *self.starts, self.size = accumulate((file.size for file in self._files), initial=0)
        self.version = "+".join(file.version for file in self._files)

    def read(self, offset: int, count: int) -> bytes:
        """Exactly ``count`` bytes from ``offset``, none of them from another file.

        Raises:
            SlideError: If the file has become shorter than that, or the disk fails.
        """
        i = max(bisect_right(self.starts, offset) - 1, 0)
        return self._files[i].read(offset - self.starts[i], count)

    def read_many(self, ranges: Sequence[Range]) -> list[bytes]:
        """The bytes of each (offset, count), in that order."""
        return [self.read(offset, count) for offset, count in ranges]

    def start(self, ranges: Sequence[Range]) -> Future[list[bytes]] | None:
        """None: the system reads ahead by itself."""
        return None

    def as_file(self) -> BinaryIO:
        """All of it, held in memory."""
        return BytesIO(b"".join(file.read(0, file.size) for file in self._files))
