"""Global and local views of a batch of tiles, made on the tiles' device.

Shape suffixes: B tiles, S source edge, N views of one kind (n * B, view-major), H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anlage.tiles.augment import colour
from anlage.tiles.augment.parameters import ViewParameters, draw_parameters
from anlage.tiles.augment.resample import apply_weights, blur_weights, crop_weights
from anlage.tiles.augment.spec import MultiCropSpec
from anlage.tiles.augment.stain import jitter_stains, stain_basis

__all__ = ["MultiCropSpec", "Views", "views"]

JITTER_STEPS = (
    colour.brighten,
    colour.contrast,
    colour.saturate,
    colour.shift_hue,
)


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
    their device, whole groups at once. A view does not depend on the other tiles of the batch.

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
    with torch.autocast(pixels_B3SS.device.type, enabled=False):
        rows_BS3S = pixels_B3SS.permute(0, 2, 1, 3).contiguous().float().div_(255)
        made = []
        for first, last, edge_px in (
            (0, spec.n_global, spec.global_px),
            (spec.n_global, spec.n_views, spec.local_px),
        ):
            flat = parameters.of_views(first, last)
            crops = _cut(rows_BS3S, flat, n_views=last - first, edge_px=edge_px)
            _change_colours(crops, flat, spec)
            made.append(crops)
    return Views(global_crops=made[0], local_crops=made[1])


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


def _cut(rows_BS3S: Tensor, flat: ViewParameters, *, n_views: int, edge_px: int) -> Tensor:
    """Crop, flip and resize: (n_views * B, 3, edge_px, edge_px)."""
    n, source_px = rows_BS3S.shape[:2]
    device = rows_BS3S.device
    crops_N3HW = torch.empty(n_views * n, 3, edge_px, edge_px, device=device)
    if n_views == 0:
        return crops_N3HW
    box_6N = _to(
        device, np.stack([flat.left, flat.width, flat.hflip, flat.top, flat.height, flat.vflip])
    )
    start_2N, length_2N, flip_2N = (box_6N[row::3].flatten() for row in range(3))
    weights = crop_weights(start_2N, length_2N, flip_2N.bool(), source_px=source_px, out_px=edge_px)
    across_NWS, down_NHS = weights.chunk(2)
    for view in range(n_views):
        rows = slice(view * n, (view + 1) * n)
        crops_N3HW[rows] = apply_weights(rows_BS3S, down_NHS[rows], across_NWS[rows])
    return crops_N3HW.clamp_(0, 1)


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
