"""A remote object as a seekable file for parsers: read in blocks, which are kept for a while."""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

BLOCK_BYTES = 2**17  # at 20 ms and 100 MB/s its transfer is a twentieth of the wait for it
MAX_BLOCKS = 128  # 16 MiB for the whole process
Key = tuple[str, str, int]  # location, version, number of the block


class _Blocks:
    """The blocks that were read last, of all files of this process."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[Key, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key) -> bytes | None:
        with self._lock:
            if key in self._blocks:
                self._blocks.move_to_end(key)
            return self._blocks.get(key)

    def put(self, key: Key, data: bytes) -> None:
        with self._lock:
            self._blocks[key] = data
            while len(self._blocks) > MAX_BLOCKS:
                self._blocks.popitem(last=False)

    def forget(self) -> None:
        """In a forked child, where the lock may be held by a thread that is no more."""
        self.__init__()  # type: ignore[misc]


_BLOCKS = _Blocks()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_BLOCKS.forget)


def keep_block(location: str, version: str, number: int, data: bytes) -> None:
    """Remember a block that came with some other answer."""
    _BLOCKS.put((location, version, number), data)


class BlockFile(io.RawIOBase):
    """A read-only file over ``fetch``; neighbouring blocks that are missing come by one request.

    Args:
        location: The object's URL.
        version: Its version; blocks of another are not used.
        size: Its length, bytes.
        fetch: Gives exactly the bytes (offset, count) of it.
    """

    def __init__(
        self, location: str, version: str, size: int, fetch: Callable[[int, int], bytes]
    ) -> None:
        self.name = location
        self._version, self._size, self._fetch = version, size, fetch
        self._position = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position; beyond the end nothing is read."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(start + offset, 0)
        return self._position

    def tell(self) -> int:
        """The position."""
        return self._position

    def readinto(self, buffer: Any, /) -> int:  # noqa: ANN401 - any writable buffer
        """Fill the buffer, unless the file ends before."""
        view = memoryview(buffer).cast("B")
        count = max(min(len(view), self._size - self._position), 0)
        if count == 0:
            return 0
        first, last = self._position // BLOCK_BYTES, (self._position + count - 1) // BLOCK_BYTES
        start = self._position - first * BLOCK_BYTES
        view[:count] = self._blocks(first, last)[start : start + count]
        self._position += count
        return count

    def _blocks(self, first: int, last: int) -> bytes:
        numbers = range(first, last + 1)
        found = {n: _BLOCKS.get((self.name, self._version, n)) for n in numbers}
        missing = [n for n in numbers if found[n] is None]
        if missing:
            start = missing[0] * BLOCK_BYTES
            end = min((missing[-1] + 1) * BLOCK_BYTES, self._size)
            data = self._fetch(start, end - start)
            for n in range(missing[0], missing[-1] + 1):
                found[n] = data[(n - missing[0]) * BLOCK_BYTES :][:BLOCK_BYTES]
                _BLOCKS.put((self.name, self._version, n), found[n] or b"")
        return b"".join(block or b"" for block in found.values())
