"""What one tile is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class TileSpec:
    """What one tile is: its edge in pixels, and the resolution those pixels have.

    Attributes:
        size_px: Tile edge after resampling, in pixels at ``mpp``.
        mpp: Target resolution, micrometres per pixel.
        stride_px: Step between tile corners, in pixels at ``mpp``; ``size_px`` means no overlap.
        min_tissue: Smallest tissue fraction of a kept tile, 0 to 1.
    """

    size_px: int = 224
    mpp: float = 0.5
    stride_px: int = 224
    min_tissue: float = 0.25

    def __post_init__(self) -> None:
        rules = {
            "size_px of at least 1": self.size_px >= 1,
            "mpp above 0": self.mpp > 0,
            "stride_px of at least 1": self.stride_px >= 1,
            "min_tissue from 0 to 1": 0 <= self.min_tissue <= 1,
        }
        for rule, holds in rules.items():
            if not holds:
                msg = f"TileSpec: needs {rule}; got {self}. Correct that value."
                raise ValueError(msg)
