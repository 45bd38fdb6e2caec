"""Which process makes which bag of a folder: locks that end with their process."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Self

from anlage.slides.storage.location import is_remote

LOGGER = logging.getLogger(__name__)
CLAIMS = ".claims"
OF_THE_RECORD = 0  # the byte that stands for embedding.json; slides have the others


class SlideClaims:
    """Claims on the slides of one folder, so that no two processes make one bag; a context manager.

    A byte of ``FOLDER/.claims`` stands for each slide, and the kernel's lock on it for the process
    that makes its bag: it is gone with the process, also after ``kill -9``, and holds between the
    machines that share a folder by NFS. The file stays behind, empty. Where there are no such locks
    (Windows, some file systems) that is logged once, and every claim is granted.

    Args:
        folder: Folder of the bags; made if it is missing.

    Raises:
        OSError: If the folder cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._file = (folder / CLAIMS).open("ab")
        self._is_locking = sys.platform != "win32"
        if not self._is_locking:
            self._tell("Windows has none")

    def take(self, slide_id: str) -> bool:
        """Claim a slide; False if another process has it now."""
        return self._lock(_byte_of(slide_id), waits=False)

    def give_back(self, slide_id: str) -> None:
        """End a claim."""
        self._unlock(_byte_of(slide_id))

    @contextmanager
    def of_the_record(self) -> Iterator[None]:
        """Be alone in reading and writing the folder's record; waits for the others."""
        self._lock(OF_THE_RECORD, waits=True)
        try:
            yield
        finally:
            self._unlock(OF_THE_RECORD)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def _lock(self, byte: int, *, waits: bool) -> bool:
        if sys.platform == "win32" or not self._is_locking:
            return True
        import fcntl

        how = fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB
        try:
            fcntl.lockf(self._file, how, 1, byte)
        except (BlockingIOError, PermissionError):  # POSIX leaves open which of the two
            return False
        except OSError as error:
            self._is_locking = False
            self._tell(error.strerror)
        return True

    def _unlock(self, byte: int) -> None:
        if sys.platform == "win32" or not self._is_locking:
            return
        import fcntl

        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, byte)

    def _tell(self, why: str | None) -> None:
        told = "%s: no locks on files here (%s); start only one run on these slides in it"
        LOGGER.warning(told, self._folder, why)


class NoClaims:
    """Claims where there is nothing to lock, as at a URL: every one is granted.

    Bags stay whole all the same: of two that are written at once, one is kept.
    """

    def take(self, slide_id: str) -> bool:
        """Claim a slide."""
        del slide_id
        return True

    def give_back(self, slide_id: str) -> None:
        """End a claim."""

    def of_the_record(self) -> AbstractContextManager[None]:
        """Be alone in reading and writing the record; here nobody can promise it."""
        return nullcontext()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End all claims."""


Claims = SlideClaims | NoClaims


def claims_on(output: str | Path) -> Claims:
    """Claims on the slides of a folder; those of a URL are not kept from anybody."""
    return NoClaims() if is_remote(str(output)) else SlideClaims(Path(output))


def _byte_of(slide_id: str) -> int:
    """A byte from 1 on; two slides share one with a chance of one in 10^18."""
    digest = hashlib.sha256(slide_id.encode()).digest()
    return 1 + (int.from_bytes(digest[:8], "big") >> 3)
