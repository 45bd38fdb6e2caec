"""What every tissue method is: a callable from pixels to a mask, and what it needs to see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anlage.errors import AnlageError, TissueError

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
FindTissue = Callable[[Pixels, float], Mask]
MAX_BLOCK_PX = 16_384  # 800 MB of pixels


@dataclass(frozen=True, kw_only=True, slots=True)
class TissueFinder:
    """A tissue method, ready to run.

    Attributes:
        name: As given on the command line and recorded in the catalogue.
        find: From (H, W, 3) uint8 RGB and its micrometres per pixel to (H, W) bool, True on tissue.
        mpp: The resolution it has to see, micrometres per pixel; None: whatever the mask has.
        block_px: Edge of the blocks it is given, in pixels at ``mpp``, the halo not counted; None:
            it has to see the whole slide at once (a threshold over the slide). With a block size
            no picture larger than a block and its halo is ever held, however fine ``mpp`` is.
        halo_px: Context around each block, in pixels at ``mpp``: half the receptive field of a
            network, so that blocks meet without a seam. What it finds there is thrown away.
    """

    name: str
    find: FindTissue
    mpp: float | None = None
    block_px: int | None = None
    halo_px: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        if self.mpp is not None and not 0 < self.mpp < float("inf"):
            msg = f"TissueFinder {self.name!r} needs mpp > 0 or None; got {self.mpp}."
            raise ValueError(msg)
        if self.block_px is None:
            return
        edge = self.block_px + 2 * self.halo_px
        if self.mpp is None or self.block_px < 1 or self.halo_px < 0 or edge > MAX_BLOCK_PX:
            msg = (
                f"TissueFinder {self.name!r} needs an mpp, block_px >= 1, halo_px >= 0 and block "
                f"and halo within {MAX_BLOCK_PX} px; got mpp={self.mpp}, block_px={self.block_px}, "
                f"halo_px={self.halo_px}."
            )
            raise ValueError(msg)

    def __call__(self, pixels: Pixels, mpp: float) -> Mask:
        """The tissue of a picture.

        Args:
            pixels: (H, W, 3) uint8 RGB.
            mpp: Their resolution, micrometres per pixel.

        Returns:
            (H, W) bool, True on tissue.

        Raises:
            ValueError: If the picture is no (H, W, 3) uint8.
            TissueError: If the method fails, or gives something else than such a mask.
        """
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
            msg = f"{self.name} needs (H, W, 3) uint8; got {pixels.dtype} of shape {pixels.shape}."
            raise ValueError(msg)
        try:
            mask: object = self.find(pixels, mpp)
        except AnlageError:
            raise
        except Exception as error:  # a plug-in's code, whatever it raises
            message = f"failed on {pixels.shape} at {mpp:g} mpp: {type(error).__name__}: {error}."
            raise TissueError(self.name, message) from error
        if isinstance(mask, np.ndarray) and mask.dtype == np.bool_:
            if mask.shape == pixels.shape[:2]:
                return mask
            got = f"shape {mask.shape}"
        else:
            got = f"{getattr(mask, 'dtype', type(mask).__name__)}"
        message = (
            f"needs to give a numpy bool mask of shape {pixels.shape[:2]}; got {got}. "
            "Correct the method, or take another (otsu)."
        )
        raise TissueError(self.name, message)
