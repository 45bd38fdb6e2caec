"""Global and local views of a batch of tiles, made on the tiles' device.

Shape suffixes: B tiles, S source edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anlage.tiles.augment.batched import make_batched
from anlage.tiles.augment.one_by_one import make_one_by_one
from anlage.tiles.augment.parameters import draw_parameters
from anlage.tiles.augment.spec import MultiCropSpec

__all__ = ["MultiCropSpec", "Views", "views"]


@dataclass(frozen=True, slots=True)
class Views:
    """The views of a batch, view-major: rows ``v * B`` to ``(v + 1) * B - 1`` are view v.

    Attributes:
        global_crops: (n_global * B, 3, global_px, global_px) float32 in [0, 1], not normalised.
        local_crops: (n_local * B, 3, local_px, local_px) float32 in [0, 1], not normalised.
    """

    global_crops: Tensor
    local_crops: Tensor


@torch.no_grad()
def views(
    pixels_B3SS: Tensor, g: Sequence[int] | NDArray[np.int64], *, spec: MultiCropSpec, seed: int
) -> Views:
    """Global and local crops of each tile: crop, flip, resize, stains, colours, blur, solarize.

    The decisions are a pure function of (seed, g) and drawn on the CPU; the pixels are changed on
    their device: one view after another on the CPU, whole groups at once elsewhere. Both are the
    same up to bytes rounded the other way (see ``make_one_by_one``). A view does not depend on the
    other tiles of the batch; on the CPU, not in a bit.

    Args:
        pixels_B3SS: (B, 3, S, S) uint8 tiles, S = ``spec.source_px``.
        g: (B,) global indices of the tiles.
        spec: Which views, and what may happen to them.
        seed: Seed of the run.

    Returns:
        The views, float32 in [0, 1].

    Raises:
        ValueError: If the pixels are not uint8 of the spec's size, or ``g`` is not one index each.
    """
    _refuse_unfit(pixels_B3SS, g, spec)
    parameters = draw_parameters([int(index) for index in g], spec=spec, seed=seed)
    make = make_one_by_one if pixels_B3SS.device.type == "cpu" else make_batched
    with torch.autocast(pixels_B3SS.device.type, enabled=False):
        global_crops, local_crops = (
            make(pixels_B3SS, parameters.of_views(first, last), spec, edge_px=edge_px)
            for first, last, edge_px in (
                (0, spec.n_global, spec.global_px),
                (spec.n_global, spec.n_views, spec.local_px),
            )
        )
    return Views(global_crops=global_crops, local_crops=local_crops)


def _refuse_unfit(
    pixels_B3SS: Tensor, g: Sequence[int] | NDArray[np.int64], spec: MultiCropSpec
) -> None:
    expected = (3, spec.source_px, spec.source_px)
    if pixels_B3SS.dtype != torch.uint8 or tuple(pixels_B3SS.shape[1:]) != expected:
        msg = (
            f"views: needs uint8 tiles (B, 3, {spec.source_px}, {spec.source_px}); got "
            f"{pixels_B3SS.dtype} {tuple(pixels_B3SS.shape)}. Read tiles of source_px, or set "
            "source_px to the size that is read."
        )
        raise ValueError(msg)
    if len(g) != len(pixels_B3SS) or len(g) == 0:
        msg = (
            f"views: needs one global index for each tile, and at least one; got {len(g)} indices "
            f"for {len(pixels_B3SS)} tiles. Pass the batch's own g."
        )
        raise ValueError(msg)
