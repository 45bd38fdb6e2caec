"""A catalogue without files: columns and masks as a test wants them, read as the real one is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa

from anlage.slides.masks import TissueMask

DEFAULTS: dict[str, Any] = {
    "width": 3290,
    "height": 2530,
    "mpp": 0.25,
    "tissue_area_mm2": 1.0,
    "level_downsamples": [1.0],
    "level_tile_width": [0],
    "level_tile_height": [0],
}


def random_mask(name: str) -> np.ndarray:
    """Half of the 64 px squares of a slide of the default size, at 8 mpp."""
    generator = np.random.default_rng(sum(map(ord, name)))
    return np.kron(generator.random((10, 13)) < 0.5, np.ones((8, 8), bool))


class ColumnCatalogue:
    """Stands for a ``Catalogue``; ``slides`` are slide_ids with what differs from ``DEFAULTS``.

    Keys ``mask`` and ``mask_mpp`` are no columns. ``asked`` lists the masks that were asked for.
    """

    def __init__(self, slides: Mapping[str, Mapping[str, Any]] | Sequence[str]) -> None:
        given = slides if isinstance(slides, Mapping) else {name: {} for name in slides}
        self.path = Path("slides.parquet")
        self._masks = {
            name: TissueMask(
                fields.get("mask", random_mask(name)), float(fields.get("mask_mpp", 8.0))
            )
            for name, fields in given.items()
        }
        self._rows = [
            {"slide_id": name, **DEFAULTS}
            | {key: value for key, value in fields.items() if key not in {"mask", "mask_mpp"}}
            for name, fields in given.items()
        ]
        self._table = pa.Table.from_pylist(self._rows)
        self.asked: list[str] = []

    @property
    def column_names(self) -> list[str]:
        return list(self._table.column_names)

    def __len__(self) -> int:
        return len(self._rows)

    def column(self, name: str) -> pa.ChunkedArray:
        return self._table.column(name)

    def column_codes(self, name: str) -> tuple[np.ndarray, int]:
        encoded = self.column(name).combine_chunks().dictionary_encode(null_encoding="encode")
        return encoded.indices.to_numpy().astype(np.int64), len(encoded.dictionary)

    def row(self, slide_id: str) -> Any:
        return SimpleNamespace(**next(r for r in self._rows if r["slide_id"] == slide_id))

    def mask(self, slide_id: str) -> TissueMask:
        self.asked.append(slide_id)
        return self._masks[slide_id]
