"""Several local files read as if they stood one behind the other."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import Future
from io import BytesIO
from itertools import accumulate
from typing import BinaryIO, ClassVar

from anlage.slides.storage.byte_source import ByteSource, Range, SlideChangedError
from anlage.slides.storage.file_bytes import FileBytes


class JoinedBytes(ByteSource):
    """The files of one slide as one: a place in the second begins where the first ends.

    Only the file that was read last is open, since a slide may have dozens.

    Args:
        path: What the slide is called by.
        files: At least one, in the order in which they are joined.

    Attributes:
        starts: Where each file begins, bytes.

    Raises:
        SlideError: If the system does not open one of the files.
        SlideChangedError: When it is read, if another file has taken the place of one.
    """

    is_remote: ClassVar[bool] = False

    def __init__(self, path: str, files: Sequence[str]) -> None:
        self.path = path
        self._paths = tuple(files)
        opened = [(file.size, file.version) for file in map(FileBytes, files)]
        *self.starts, self.size = accumulate((size for size, _ in opened), initial=0)
        self._versions = [version for _, version in opened]
        self.version = "+".join(self._versions)
        self._last: tuple[int, FileBytes] | None = None

    def read(self, offset: int, count: int) -> bytes:
        """Exactly ``count`` bytes from ``offset``, none of them from another file.

        Raises:
            SlideError: If the file has become shorter than that, or the disk fails.
        """
        i = max(bisect_right(self.starts, offset) - 1, 0)
        return self._file(i).read(offset - self.starts[i], count)

    def read_many(self, ranges: Sequence[Range]) -> list[bytes]:
        """The bytes of each (offset, count), in that order."""
        return [self.read(offset, count) for offset, count in ranges]

    def start(self, ranges: Sequence[Range]) -> Future[list[bytes]] | None:
        """None: the system reads ahead by itself."""
        return None

    def as_file(self) -> BinaryIO:
        """All of it, held in memory."""
        files = map(self._file, range(len(self._paths)))
        return BytesIO(b"".join(file.read(0, file.size) for file in files))

    def _file(self, i: int) -> FileBytes:
        last = self._last
        if last is not None and last[0] == i:
            return last[1]
        file = FileBytes(self._paths[i])
        if file.version != self._versions[i]:
            raise SlideChangedError(file.path, "has changed since it was opened. Open it again.")
        self._last = (i, file)
        return file
