"""A slide of any size that is made as it is read, and what finding its tissue takes."""

from __future__ import annotations

import json
import resource
import sys
from typing import ClassVar

import numpy as np

from anlage.geometry import Size
from anlage.slides.reader import SlideReader, levels_of
from anlage.slides.resolution import Resolution
from anlage.slides.tissue import TissueFinder, find_slide_tissue, tissue_method


class SparseSlide(SlideReader):
    """Glass with one square of tissue over the middle fifth of each side."""

    reader: ClassVar[str] = "sparse"

    def __init__(
        self, width: int, height: int, *, mpp: float, downsamples: tuple[int, ...]
    ) -> None:
        sizes = [Size(width // step, height // step) for step in downsamples]
        resolution = Resolution(mpp, "vendor")
        super().__init__("sparse", vendor="test", levels=levels_of(sizes), resolution=resolution)

    def _read_inside(self, level: int, left: int, top: int, size: Size) -> np.ndarray:
        pixels = np.full((size.height, size.width, 3), 243, np.uint8)
        shape = self.levels[level]
        rows, columns = (
            slice(max(0, extent * 2 // 5 - start), max(0, extent * 3 // 5 - start))
            for extent, start in ((shape.height, top), (shape.width, left))
        )
        pixels[rows, columns] = (200, 120, 170)
        return pixels

    @property
    def associated(self) -> tuple[str, ...]:
        return ()

    def read_associated(self, name: str) -> np.ndarray:
        raise self._no_such_associated(name)

    @property
    def icc_profile(self) -> bytes | None:
        return None


def by_blocks(pixels: np.ndarray, mpp: float) -> np.ndarray:
    del mpp
    return pixels[..., 1] < 200


def main(width: int, height: int, downsamples: str, method: str, mask_mpp: float) -> None:
    """Find the tissue in a process of its own; print what came out and the memory it took."""
    slide = SparseSlide(
        width, height, mpp=0.25, downsamples=tuple(map(int, downsamples.split(",")))
    )
    finder = (
        TissueFinder(name="net", find=by_blocks, mpp=1.0, block_px=1024, halo_px=64)
        if method == "blocks"
        else tissue_method(method)
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = find_slide_tissue(slide, finder, mask_mpp=mask_mpp)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = {
        "shape": found.tissue.mask.shape,
        "mpp": found.tissue.mpp,
        "share": float(found.tissue.mask.mean()),
        "took_mb": (after - before) / 1024,
    }
    sys.stdout.write(json.dumps(said))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]), *sys.argv[3:5], float(sys.argv[5]))
