"""Slides that a test makes: known pixels, known resolution, sizes that no tile divides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tifffile

from anlage.geometry import Size
from anlage.slides.reader import SlideReader, levels_of
from anlage.slides.resolution import Resolution

# Height, width: multiples of 16 that divide none of the sizes used. Their bytes are a multiple of
# 1024, without which libtiff, hence OpenSlide, refuses the last tile of an uncompressed file.
TILE = (64, 112)


def tissue_like(width: int, height: int, *, seed: int = 7) -> np.ndarray:
    """(height, width, 3) uint8 of smooth colours with some texture, no two places alike."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    waves = [np.sin(x / (23 + 9 * c) + c) + np.cos(y / (31 - 5 * c)) for c in range(3)]
    noise = np.random.default_rng(seed).normal(0, 6, (height, width, 3))
    return np.clip(140 + 50 * np.stack(waves, -1) + noise, 0, 255).astype(np.uint8)


def halved(picture: np.ndarray) -> np.ndarray:
    """Every second pixel averaged; the last odd row and column are cut, as scanners do."""
    height, width = (extent // 2 * 2 for extent in picture.shape[:2])
    blocks = picture[:height, :width].reshape(height // 2, 2, width // 2, 2, 3)
    return np.round(blocks.mean(axis=(1, 3))).astype(np.uint8)


def pyramid(width: int, height: int, *, n_levels: int = 3) -> list[np.ndarray]:
    """Levels of a slide, each half of the one before."""
    levels = [tissue_like(width, height)]
    for _ in range(n_levels - 1):
        levels.append(halved(levels[-1]))
    return levels


def write_tiff(
    path: Path, levels: Sequence[np.ndarray], *, mpp: float | None = 0.5, **how: Any
) -> Path:
    """A pyramidal TIFF of these levels as separate pages; ``how`` goes to tifffile."""
    settings: dict[str, Any] = {"tile": TILE, "photometric": "rgb", "metadata": None, **how}
    with tifffile.TiffWriter(path) as writer:
        for i, level in enumerate(levels):
            if mpp is not None:
                per_cm = 1e4 / (mpp * 2**i)
                settings |= {"resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER"}
            writer.write(level, subfiletype=int(i > 0), **settings)
            settings.pop("iccprofile", None)
    return path


def overwrite_tile(path: Path, *, page: int, tile: int, data: bytes | None) -> None:
    """Damage one tile of a TIFF in place: with ``data``, or zeros over all of it."""
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[page].dataoffsets[tile]
        count = tiff.pages[page].databytecounts[tile]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(count) if data is None else data[:count].ljust(count, b"\0"))


class ArraySlide(SlideReader):
    """A slide whose levels are arrays in memory."""

    reader: ClassVar[str] = "array"

    def __init__(self, levels: Sequence[np.ndarray], *, mpp: float) -> None:
        sizes = [Size(level.shape[1], level.shape[0]) for level in levels]
        super().__init__(
            "array", vendor="test", levels=levels_of(sizes), resolution=Resolution(mpp, "vendor")
        )
        self.arrays = list(levels)

    @property
    def associated(self) -> tuple[str, ...]:
        return ()

    @property
    def icc_profile(self) -> bytes | None:
        return None

    def read_associated(self, name: str) -> np.ndarray:
        raise self._no_such_associated(name)

    def _read_inside(self, level: int, left: int, top: int, size: Size) -> np.ndarray:
        return self.arrays[level][top : top + size.height, left : left + size.width].copy()
