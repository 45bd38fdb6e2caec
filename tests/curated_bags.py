"""Bags of a small catalogue's tiles whose embeddings, and what kind each is of, are known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from some_bags import ATTRIBUTES

from anlage.bags.store import Bag, write_bag
from anlage.slides.catalogue import Catalogue

WIDTH, N_TILES = 12, 48


def corners_of() -> np.ndarray:
    """All 32 px tiles of a slide of 256 x 192 px, row by row."""
    x, y = np.meshgrid(np.arange(0, 256, 32), np.arange(0, 192, 32))
    return np.stack([x.ravel(), y.ravel()], axis=1).astype(np.int64)


def kind_of(n: int = N_TILES) -> np.ndarray:
    """Which of four kinds each tile is: 30, 12, 4 and 2 of them."""
    return np.repeat(np.arange(4), [30, 12, 4, 2])[:n]


def features_of(seed: int) -> np.ndarray:
    """Embeddings near a corner of a cube by the tile's kind, all different."""
    generator = np.random.default_rng(seed)
    rows = np.eye(4, WIDTH)[kind_of()] + generator.normal(0, 0.08, (N_TILES, WIDTH))
    return rows.astype(np.float16)


@dataclass
class Bags:
    """Writes bags of a catalogue's slides into a folder."""

    catalogue: Catalogue
    folder: Path

    def write(
        self, slide_id: str, features: np.ndarray, corners: np.ndarray | None = None, **changes
    ) -> str:
        corners = corners_of()[: len(features)] if corners is None else corners
        known = slide_id in self.catalogue
        row = self.catalogue.row(slide_id) if known else None
        made = {
            **{"mpp": 1.0, "slide_mpp": 1.0, "tile_px": 32, "stride_px": 32},
            **{"slide_width_px": 256, "slide_height_px": 192},
            "slide_fingerprint": row.fingerprint if row else "f" * 64,
        }
        bag = Bag(slide_id, features, corners, replace(ATTRIBUTES, **{**made, **changes}))
        write_bag(self.folder / f"{slide_id}.h5", bag)
        return str(self.folder)
