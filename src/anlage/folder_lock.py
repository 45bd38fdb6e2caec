"""One writer a folder: a lock that ends with its process, however that ends."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

LOGGER = logging.getLogger(__name__)
LOCK = ".lock"


@contextmanager
def lock_folder(folder: str | Path, *, held: Exception) -> Iterator[None]:
    """Hold a folder, so that a second writer is refused at once.

    The lock (``flock`` on ``FOLDER/.lock``) is the kernel's: it is gone with the process, also
    after ``kill -9``, and the file that stays behind holds nothing. Only those who take it are
    kept out. On Windows, and on file systems that cannot lock, that is logged and the work goes on.

    Args:
        folder: Made if it is missing.
        held: Raised if another process, or another call in this one, holds the folder.
    """
    path = Path(folder) / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        _lock(file, path, held)
        yield


def _lock(file: IO[str], path: Path, held: Exception) -> None:
    """Lock an open file until it is closed."""
    if sys.platform == "win32":
        LOGGER.warning("%s: Windows has no such lock; start only one run in it", path.parent)
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise held from None
    except OSError as error:
        told = "%s: cannot be locked (%s); start only one run in it"
        LOGGER.warning(told, path.parent, error.strerror)
