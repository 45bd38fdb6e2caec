"""Slow views of one tile, one operation at a time: cut by PIL, coloured by torchvision."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as torchvision

from anlage.tiles.augment.parameters import ViewParameters


def slow_view(tile: Tensor, p: ViewParameters, i: int, *, edge_px: int, kernel_px: int) -> Tensor:
    """View ``i`` of flattened parameters, from a (3, S, S) uint8 tile: (3, edge, edge) float32."""
    top, left, height, width = (int(a[i]) for a in (p.top, p.left, p.height, p.width))
    crop = Image.fromarray(tile.permute(1, 2, 0).numpy()).crop(
        (left, top, left + width, top + height)
    )
    cubic = Image.Resampling.BICUBIC
    wide = crop.resize((edge_px, height), cubic)  # by itself PIL begins with the cheaper axis
    resized = np.array(wide.resize((edge_px, edge_px), cubic))
    view = torch.from_numpy(resized).permute(2, 0, 1) / 255
    view = torchvision.hflip(view) if p.hflip[i] else view
    view = torchvision.vflip(view) if p.vflip[i] else view
    steps = (
        torchvision.adjust_brightness,
        torchvision.adjust_contrast,
        torchvision.adjust_saturation,
        torchvision.adjust_hue,
    )
    if p.jitter[i]:
        for step in p.order[i]:
            view = steps[step](view, float(p.factors[i, step]))
    if p.grayscale[i]:
        view = torchvision.rgb_to_grayscale(view, num_output_channels=3)
    if p.blur[i]:
        view = torchvision.gaussian_blur(view, [kernel_px] * 2, [float(p.sigma[i])] * 2)
    if p.solarize[i]:
        view = torchvision.solarize(view, 128 / 255)
    return torch.as_tensor(view)
