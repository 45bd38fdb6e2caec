"""Small slides and a catalogue of them, made by the test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from synthetic_slides import write_tiff

from anlage.slides.catalogue import Catalogue
from anlage.slides.indexing.index import index_slides

SIZE = (256, 192)  # at 1 mpp: 0.05 mm², of which the square is 0.012


def write_slide(path: Path, *, seed: int = 0, mpp: float | None = 1.0) -> Path:
    """A glass slide with a pink square, one level, tiled TIFF whatever its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).normal(242, 1, (*SIZE[::-1], 3))
    pixels[40:150, 40:150] = np.random.default_rng(seed).normal((190, 90, 160), 4, (110, 110, 3))
    return write_tiff(path, [np.clip(pixels, 0, 255).astype(np.uint8)], mpp=mpp)


def write_blank(path: Path) -> Path:
    """A slide of glass only."""
    pixels = np.random.default_rng(1).normal(242, 1, (*SIZE[::-1], 3))
    return write_tiff(path, [np.clip(pixels, 0, 255).astype(np.uint8)])


def write_labels(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """A labels file whose columns are those of the first row."""
    lines = [",".join(rows[0]), *(",".join(str(v) for v in row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def make_catalogue(folder: Path, n_slides: int = 3, *, labelled: bool = True) -> Catalogue:
    """A catalogue of slides named a, b, c... of which the last is the test split."""
    names = [chr(ord("a") + i) for i in range(n_slides)]
    for i, name in enumerate(names):
        write_slide(folder / f"{name}.tif", seed=i)
    rows = [
        {
            "slide_id": name,
            "patient_id": f"p-{name}",
            "stain": "H&E",
            "split": "test" if name == names[-1] else "train",
            "grade": i or "",
        }
        for i, name in enumerate(names)
    ]
    labels = write_labels(folder / "labels.csv", rows) if labelled else None
    result = index_slides([folder], folder / "slides.parquet", labels=labels)
    assert result.catalogue is not None
    return result.catalogue
