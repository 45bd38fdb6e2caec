"""Bytes of a slide in a bucket or on a web server, and the slides that a bucket holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, ClassVar, cast

from anlage.errors import SlideError
from anlage.slides.storage.block_file import BLOCK_BYTES, BlockFile, keep_block
from anlage.slides.storage.byte_source import ByteSource, Range, SlideChangedError
from anlage.slides.storage.connections import gather
from anlage.slides.storage.range_merging import cut_apart, merge_ranges
from anlage.slides.storage.remote_request import list_objects, request_range, version_of

GAP_BYTES = 2**16  # at 100 MB/s sent in 0.7 ms, about what a request more costs both sides
LONGEST_BYTES = 2**23  # more than this goes faster over two connections


class RemoteBytes(ByteSource):
    """An object that is read by ranged requests: near ones as one, all of them at the same time.

    Every answer's version and length are compared with ``version`` and ``size``, so that bytes of
    two different files are never mixed.

    Args:
        location: Its URL: ``s3://``, ``gs://``, ``az://``, ``https://`` or ``http://``.
        version: If known: nothing else will be read.
        size: Its length, bytes, if known. With both no request is made here.

    Raises:
        SlideError: If it does not exist, may not be read, or cannot be reached.
    """

    is_remote: ClassVar[bool] = True

    def __init__(
        self, location: str, *, version: str | None = None, size: int | None = None
    ) -> None:
        self.path, self.is_confirmed = location, False
        if version is None or size is None:
            head = request_range(location, 0, BLOCK_BYTES)
            self.version, self.size = version or head.version, head.size if size is None else size
            self._refuse_changed(head.version, head.size)
            keep_block(location, self.version, 0, head.data)
        else:
            self.version, self.size = version, size

    def read(self, offset: int, count: int) -> bytes:
        """Exactly ``count`` bytes from ``offset``, by one request."""
        if count == 0:
            return b""
        if offset < 0 or offset + count > self.size:
            raise SlideError(
                self.path, f"needs {count} bytes at {offset}; it has {self.size}. It is damaged."
            )
        answer = request_range(self.path, offset, count)
        self._refuse_changed(answer.version, answer.size)
        if len(answer.data) != count:
            found = f"needs {count} bytes at {offset}; got {len(answer.data)}"
            raise SlideError(self.path, f"{found}. Its server breaks off answers.")
        return answer.data

    def read_many(self, ranges: Sequence[Range]) -> list[bytes]:
        """The bytes of each (offset, count), in that order; requests run side by side."""
        jobs, finish = self._planned(ranges)
        if len(jobs) < 2:
            return finish([job() for job in jobs])
        return gather(jobs, finish).result()

    def start(self, ranges: Sequence[Range]) -> Future[list[bytes]]:
        """Begin ``read_many`` in the background; cancelling leaves out what has not begun."""
        jobs, finish = self._planned(ranges)
        if jobs:
            return gather(jobs, finish)
        nothing: Future[list[bytes]] = Future()
        nothing.set_result(finish([]))
        return nothing

    def as_file(self) -> BinaryIO:
        """A seekable file that reads in blocks of 128 KiB, the last ones of which are kept."""
        return cast("BinaryIO", BlockFile(self.path, self.version, self.size, self.read))

    def _planned(
        self, ranges: Sequence[Range]
    ) -> tuple[list[Callable[[], bytes]], Callable[[list[bytes]], list[bytes]]]:
        pieces = merge_ranges(ranges, gap=GAP_BYTES, longest=LONGEST_BYTES)
        jobs: list[Callable[[], bytes]] = [
            partial(self.read, piece.offset, piece.count) for piece in pieces
        ]
        return jobs, lambda fetched: cut_apart(pieces, fetched, len(ranges))

    def _refuse_changed(self, version: str, size: int) -> None:
        if (version, size) != (self.version, self.size):
            raise SlideChangedError(
                self.path,
                f"has changed since it was opened or indexed: version {self.version}, "
                f"{self.size} bytes; now {version}, {size} bytes. Index it again.",
            )
        self.is_confirmed = True


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """An object of a bucket.

    Attributes:
        uri: Its URL.
        size: Its length, bytes.
        version: As ``RemoteBytes.version``.
    """

    uri: str
    size: int
    version: str


def list_slides_remote(prefix: str) -> list[RemoteFile]:
    """Every object below a prefix of a bucket, slide or not, sorted by name; folders' marks not.

    Args:
        prefix: ``s3://bucket/folder/`` and the like; whole folder names only.

    Raises:
        SlideError: If it is a web address, which cannot be listed; or as for a read.
    """
    scheme, _, rest = prefix.partition("://")
    if scheme.lower() in {"http", "https"}:
        raise SlideError(
            prefix, "is a web address, whose files cannot be listed. Name each slide's address."
        )
    bucket = f"{scheme}://{rest.partition('/')[0]}"
    found = [
        RemoteFile(f"{bucket}/{meta['path']}", meta["size"], version_of(meta))
        for meta in list_objects(prefix)
        if meta["size"] > 0
    ]
    return sorted(found, key=lambda file: file.uri)
