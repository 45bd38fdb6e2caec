"""Views on the CPU, one after another: some ten times as quick there as all at once.

Shape suffixes: B tiles, S source edge, E edge of a view, N views of one kind (n * B, view-major).
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from anlage.tiles.augment import picture
from anlage.tiles.augment.parameters import ViewParameters
from anlage.tiles.augment.spec import MultiCropSpec
from anlage.tiles.augment.stain import stain_basis

Bytes = NDArray[np.uint8]

JITTER_STEPS = (picture.brighten, picture.contrast, picture.saturate, picture.shift_hue)
FLIPS = {(True, False): 1, (False, True): 0, (True, True): -1}  # OpenCV's codes


def make_one_by_one(
    pixels_B3SS: Tensor, flat: ViewParameters, spec: MultiCropSpec, *, edge_px: int
) -> Tensor:
    """The views of one kind, each alone, on the CPU.

    Antialiased bicubic by torch on bytes, then colours in float32 by OpenCV. A view differs from
    that of ``make_batched`` by values that are rounded to another byte, about one in 150, and what
    the colours make of them: by less than 0.02 / 255 on average. No bit of it depends on the other
    tiles or on the number of threads.

    Args:
        pixels_B3SS: (B, 3, S, S) uint8 tiles on the CPU; channels last in memory saves a copy.
        flat: Decisions for N views, view-major.
        spec: What may happen to them.
        edge_px: Edge of the views.

    Returns:
        (N, 3, E, E) float32 in [0, 1].
    """
    tiles_BSS3 = pixels_B3SS.permute(0, 2, 3, 1).contiguous().numpy()
    basis_33 = stain_basis(spec.stain_vectors).numpy()
    crops_N3EE = torch.empty(len(flat.left), 3, edge_px, edge_px)
    planes_N3EE = crops_N3EE.numpy()
    for i in range(len(planes_N3EE)):
        cut_EE3 = _cut(tiles_BSS3[i % len(tiles_BSS3)], flat, i, edge_px=edge_px)
        changed = _change_colours(cut_EE3, flat, i, spec=spec, basis_33=basis_33)
        if changed.ndim == 3:
            cv2.split(changed, list(planes_N3EE[i]))
        else:
            planes_N3EE[i] = changed
    return crops_N3EE


def _cut(tile_SS3: Bytes, flat: ViewParameters, i: int, *, edge_px: int) -> picture.Picture:
    """Crop, flip and resize."""
    top, left = flat.top[i], flat.left[i]
    window_HW3 = tile_SS3[top : top + flat.height[i], left : left + flat.width[i]]
    flip = FLIPS.get((bool(flat.hflip[i]), bool(flat.vflip[i])))
    cut_HW3 = np.ascontiguousarray(window_HW3) if flip is None else cv2.flip(window_HW3, flip)
    cut_1HW3 = cut_HW3.reshape(1, *cut_HW3.shape)  # [None] hides from torch that channels are last
    view_13EE = functional.interpolate(
        torch.from_numpy(cut_1HW3).permute(0, 3, 1, 2),
        size=(edge_px, edge_px),
        mode="bicubic",
        antialias=True,
    )
    return picture.from_bytes(view_13EE.permute(0, 2, 3, 1)[0].contiguous().numpy())


def _change_colours(
    image_EE3: picture.Picture,
    flat: ViewParameters,
    i: int,
    *,
    spec: MultiCropSpec,
    basis_33: picture.Floats,
) -> picture.Picture:
    """Stains, jitter, greyscale, blur and solarize, each if it was decided for view ``i``.

    A grey view comes back as one plane.
    """
    if flat.stain[i]:
        image_EE3 = picture.jitter_stains(
            image_EE3, flat.stain_factor[i], flat.stain_offset[i], basis_33=basis_33
        )
    if flat.jitter[i]:
        for step in flat.order[i]:
            if spec.jitter[step] > 0:
                image_EE3 = JITTER_STEPS[step](image_EE3, float(flat.factors[i, step]))
    if flat.grayscale[i]:
        image_EE3 = picture.grayscale(image_EE3)
    if flat.blur[i]:
        sigma = float(flat.sigma[i])
        image_EE3 = picture.blur(image_EE3, sigma=sigma, kernel_px=spec.blur_kernel_px)
    if flat.solarize[i]:
        image_EE3 = picture.solarize(image_EE3)
    return image_EE3
