"""A disk of a few megabytes, for tests that fill it or forbid writing to it."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(folder: Path, *, size_kib: int) -> Iterator[Path]:
    """A file system of its own in memory.

    Mounting needs root; where that is not allowed the test is skipped, and the one with a limit on
    the size of files, which needs no right, stands for it.
    """
    folder.mkdir()
    make = ["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", str(folder)]
    try:
        made = subprocess.run(make, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("cannot mount a small disk")
    if made.returncode:
        pytest.skip("cannot mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def forbid_writing(disk: Path) -> None:
    """Make a small disk read-only."""
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
