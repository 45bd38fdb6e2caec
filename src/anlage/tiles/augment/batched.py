"""Views on any device, whole groups at once: resampling is two matrix products a tile.

Shape suffixes: B tiles, S source edge, N views of one kind (n * B, view-major), H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anlage.tiles.augment import colour
from anlage.tiles.augment.parameters import ViewParameters
from anlage.tiles.augment.resample import apply_weights, blur_weights, crop_weights, resize_bytes
from anlage.tiles.augment.spec import MultiCropSpec
from anlage.tiles.augment.stain import jitter_stains, stain_basis

JITTER_STEPS = (
    colour.brighten,
    colour.contrast,
    colour.saturate,
    colour.shift_hue,
)


def make_batched(
    pixels_B3SS: Tensor, flat: ViewParameters, spec: MultiCropSpec, *, edge_px: int
) -> Tensor:
    """The views of one kind, each step over all of them that it is for.

    Resampling rounds to bytes after each axis, as PIL's does, so that paths agree; colours change
    in float32.

    Args:
        pixels_B3SS: (B, 3, S, S) uint8 tiles.
        flat: Decisions for N views, view-major.
        spec: What may happen to them.
        edge_px: Edge of the views.

    Returns:
        (N, 3, H, W) float32 in [0, 1] on the tiles' device.
    """
    rows_BS3S = pixels_B3SS.permute(0, 2, 1, 3).contiguous().float()
    crops_N3HW = _cut(rows_BS3S, flat, edge_px=edge_px)
    _change_colours(crops_N3HW, flat, spec)
    return crops_N3HW


def _cut(rows_BS3S: Tensor, flat: ViewParameters, *, edge_px: int) -> Tensor:
    """Crop, flip and resize: (N, 3, edge_px, edge_px)."""
    n, source_px = rows_BS3S.shape[:2]
    device = rows_BS3S.device
    crops_N3HW = torch.empty(len(flat.left), 3, edge_px, edge_px, device=device)
    if len(crops_N3HW) == 0:
        return crops_N3HW
    box_6N = _to(
        device, np.stack([flat.left, flat.width, flat.hflip, flat.top, flat.height, flat.vflip])
    )
    start_2N, length_2N, flip_2N = (box_6N[row::3].flatten() for row in range(3))
    weights = crop_weights(start_2N, length_2N, flip_2N.bool(), source_px=source_px, out_px=edge_px)
    across_NWS, down_NHS = weights.chunk(2)
    for first in range(0, len(crops_N3HW), n):  # one view of every tile
        rows = slice(first, first + n)
        crops_N3HW[rows] = resize_bytes(rows_BS3S, down_NHS[rows], across_NWS[rows])
    return crops_N3HW.div_(255)


def _change_colours(crops_N3HW: Tensor, flat: ViewParameters, spec: MultiCropSpec) -> None:
    """Stains, jitter, greyscale, blur and solarize in place; each only in the views it is for."""
    chosen = np.flatnonzero(flat.stain)
    if len(chosen) > 0:
        stained = partial(
            jitter_stains,
            factor_N3=_to(crops_N3HW.device, flat.stain_factor[chosen]),
            offset_N3=_to(crops_N3HW.device, flat.stain_offset[chosen]),
            basis_33=stain_basis(spec.stain_vectors),
        )
        _change(crops_N3HW, chosen, stained)
    for turn in range(4):
        for step, apply in enumerate(JITTER_STEPS):
            if spec.jitter[step] > 0:
                chosen = np.flatnonzero(flat.jitter & (flat.order[:, turn] == step))
                factor_N = _to(crops_N3HW.device, flat.factors[chosen, step])
                _change(crops_N3HW, chosen, partial(apply, factor_N=factor_N))
    _change(crops_N3HW, np.flatnonzero(flat.grayscale), lambda x: colour.luminance(x).expand_as(x))
    chosen = np.flatnonzero(flat.blur)
    _change(crops_N3HW, chosen, lambda x: _blur(x, flat.sigma[chosen], spec.blur_kernel_px))
    _change(crops_N3HW, np.flatnonzero(flat.solarize), colour.solarize)


def _change(
    crops_N3HW: Tensor, chosen: NDArray[np.int64], change: Callable[[Tensor], Tensor]
) -> None:
    if len(chosen) > 0:
        index = torch.from_numpy(chosen).to(crops_N3HW.device, non_blocking=True)
        crops_N3HW.index_copy_(0, index, change(crops_N3HW.index_select(0, index)))


def _blur(crops_N3HW: Tensor, sigma: NDArray[np.float64], kernel_px: int) -> Tensor:
    edge_px = crops_N3HW.shape[-1]
    weights_NHH = blur_weights(
        _to(crops_N3HW.device, sigma), length_px=edge_px, kernel_px=kernel_px
    )
    return apply_weights(crops_N3HW.permute(0, 2, 1, 3), weights_NHH, weights_NHH).clamp(0, 1)


def _to(device: torch.device, array: NDArray[np.generic]) -> Tensor:
    """An array on the device, floats as float32."""
    tensor = torch.from_numpy(array)
    return (tensor.float() if tensor.is_floating_point() else tensor).to(device, non_blocking=True)
