"""Patch tokens of one slide: a NumPy file beside its bag, written as the tiles come.

Shape suffixes: L tiles of the slide, K tiles at a time, N patch tokens of a tile, E their width.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SUFFIX = ".patch_tokens.npy"


class PatchTokenFile:
    """(L, N, E) float16 tokens, in the order of the bag; none of it is held in memory.

    Read it by ``numpy.load(path, mmap_mode="r")``.

    Args:
        path: File to write, by custom ``<slide_id>.patch_tokens.npy``.
        n_tiles: Tiles of the slide, L.
    """

    def __init__(self, path: Path, n_tiles: int) -> None:
        self.path, self._n_tiles = path, n_tiles
        self._beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
        self._file = self._beside.open("xb")
        self._first_byte = 0

    def put(self, rows: NDArray[np.int64], tokens_KNE: NDArray[np.float16]) -> None:
        """Write the tokens of some tiles.

        Args:
            rows: (K,) rows of the bag.
            tokens_KNE: (K, N, E) float16, of one shape in all calls.

        Raises:
            OSError: If the disk is full.
        """
        with self._naming_the_file():
            if not self._first_byte:
                self._begin(tokens_KNE.shape[1:])
            runs = np.flatnonzero(np.diff(rows) != 1) + 1
            for run, tokens in zip(np.split(rows, runs), np.split(tokens_KNE, runs), strict=True):
                self._file.seek(self._first_byte + int(run[0]) * tokens[0].nbytes)
                self._file.write(np.ascontiguousarray(tokens).data)

    def finish(self, shape: tuple[int, int]) -> None:
        """Put the file in its place, whole.

        Args:
            shape: (N, E), for a slide without tiles.

        Raises:
            OSError: If the disk is full.
        """
        with self._naming_the_file():
            if not self._first_byte:
                self._begin(shape)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._beside.replace(self.path)

    def discard(self) -> None:
        """Remove what was written, unless it is finished."""
        self._beside.unlink(missing_ok=True)
        with suppress(OSError):  # what its buffer holds has no room; nobody wants it any more
            self._file.close()

    def _begin(self, shape: tuple[int, ...]) -> None:
        header = {"descr": "<f2", "fortran_order": False, "shape": (self._n_tiles, *shape)}
        np.lib.format.write_array_header_1_0(self._file, header)
        self._first_byte = self._file.tell()

    @contextmanager
    def _naming_the_file(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            told = f"write patch tokens: {error.strerror}"
            raise OSError(error.errno, told, str(self.path)) from error
