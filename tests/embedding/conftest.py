"""Slides of a few dozen tiles, their catalogue, and an encoder for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_encoder import make_encoder
from synthetic_slides import tissue_like, write_tiff

from anlage.encoders.folder import save_encoder
from anlage.slides.catalogue import Catalogue
from anlage.slides.indexing.index import index_slides

MPP = 0.5
SIZES = {"a": (700, 500), "b": (330, 260), "c": (512, 384), "d": (260, 700)}


def write_slide(path: Path, width: int, height: int, *, seed: int = 0) -> Path:
    """Tissue that leaves a margin of glass; multiples of nothing."""
    pixels = np.full((height, width, 3), 243, np.uint8)
    tissue = tissue_like(width - 135, height - 50, seed=seed) // 2 + np.uint8([90, 10, 70])
    pixels[30:-20, 100:-35] = tissue
    return write_tiff(path, [pixels], mpp=MPP)


@pytest.fixture
def slides(tmp_path) -> Path:
    """A folder of four slides with tissue, and between them one narrower than a tile."""
    folder = tmp_path / "slides"
    folder.mkdir()
    for seed, (name, (width, height)) in enumerate(SIZES.items()):
        write_slide(folder / f"{name}.tif", width, height, seed=seed)
    narrow = np.full((900, 60, 3), 243, np.uint8)
    narrow[:700] = tissue_like(60, 700) // 2 + np.uint8([90, 10, 70])
    write_tiff(folder / "bb.tif", [narrow], mpp=MPP)
    return folder


@pytest.fixture
def catalogue(slides) -> Catalogue:
    found = index_slides([slides], slides.parent / "slides.parquet").catalogue
    assert found is not None
    assert [row.slide_id for row in found.rows()] == ["a", "b", "bb", "c", "d"]
    return found


@pytest.fixture
def encoder_folder(tmp_path) -> Path:
    """An encoder for 32 px tiles at 1 mpp."""
    encoder = make_encoder(mpp=1.0)
    save_encoder(tmp_path / "encoder", encoder.model, encoder.config)
    return tmp_path / "encoder"
