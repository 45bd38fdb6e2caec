"""What a stream of tiles asks of whatever draws them."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from anlage.tiles.sampling import TileRequest


class TileDraws(Protocol):
    """Draws a tile for each g, as a pure function of the seed, g and the attempt."""

    @property
    def size_px(self) -> int:
        """Edge of every tile, pixels at its mpp."""
        ...

    @property
    def batch_size(self) -> int:
        """Samples of a step, over all ranks."""
        ...

    @property
    def view_mpp_factors(self) -> tuple[float, ...]:
        """Resolutions of a tile's views over its own; the first is 1."""
        ...

    @property
    def steps_per_window(self) -> int:
        """Steps whose samples may share regions."""
        ...

    def region_of(self, g_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Region of each sample, (N,) int64."""
        ...

    def draw_region(self, region: int) -> list[TileRequest]:
        """The tiles of a region, all of one slide and mpp."""
        ...

    def draw(self, g: int, *, attempt: int = 0) -> TileRequest:
        """The tile of one sample; later attempts replace tiles that cannot be used."""
        ...

    def quarantine(self, slide_id: str, *, from_step: int) -> None:
        """Draw a slide no more from the first step of a window on."""
        ...
