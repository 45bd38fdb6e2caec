from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional
from torchvision.transforms.v2 import functional as torchvision

from anlage.tiles.augment.resample import (
    apply_weights,
    blur_weights,
    crop_weights,
    resize_bytes,
)

SOURCE = 40


def pixels(n: int) -> torch.Tensor:
    return torch.rand(n, 3, SOURCE, SOURCE, generator=torch.Generator().manual_seed(n))


@settings(max_examples=60, deadline=None)
@given(
    left=st.integers(0, SOURCE - 1),
    top=st.integers(0, SOURCE - 1),
    width=st.integers(1, SOURCE),
    height=st.integers(1, SOURCE),
    out_px=st.sampled_from([7, 16, 40, 53]),
    hflip=st.booleans(),
    vflip=st.booleans(),
)
def test_equals_cutting_then_antialiased_bicubic(
    left: int, top: int, width: int, height: int, out_px: int, hflip: bool, vflip: bool
) -> None:
    width, height = min(width, SOURCE - left), min(height, SOURCE - top)
    image = pixels(1)
    crop = image[:, :, top : top + height, left : left + width]
    expected = functional.interpolate(
        crop, size=(out_px, out_px), mode="bicubic", antialias=True, align_corners=False
    )
    expected = expected.flip(-1) if hflip else expected
    expected = expected.flip(-2) if vflip else expected
    across, down = (
        crop_weights(
            *(torch.tensor([start]), torch.tensor([length]), torch.tensor([flip])),
            source_px=SOURCE,
            out_px=out_px,
        )
        for start, length, flip in ((left, width, hflip), (top, height, vflip))
    )
    made = apply_weights(image.permute(0, 2, 1, 3), down, across)
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=0)


def test_rows_sum_to_one_and_stay_inside_the_crop() -> None:
    start, length = torch.tensor([0, 5, 39]), torch.tensor([40, 9, 1])
    weights = crop_weights(start, length, torch.zeros(3).bool(), source_px=SOURCE, out_px=13)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 13))
    assert (weights[1, :, :5] == 0).all()
    assert (weights[1, :, 14:] == 0).all()
    torch.testing.assert_close(weights[2, :, 39], torch.ones(13))


def test_a_crop_of_the_view_s_own_size_is_copied() -> None:
    image = pixels(2)
    start, length = torch.tensor([3, 11]), torch.tensor([16, 16])
    weights = crop_weights(start, length, torch.zeros(2).bool(), source_px=SOURCE, out_px=16)
    made = apply_weights(image.permute(0, 2, 1, 3), weights, weights)
    torch.testing.assert_close(made[1], image[1, :, 11:27, 11:27])


@pytest.mark.parametrize(("edge", "kernel"), [(32, 9), (7, 9), (5, 9), (20, 1)])
def test_blur_equals_torchvision(edge: int, kernel: int) -> None:
    image = pixels(4)[:, :, :edge, :edge]
    sigma = torch.tensor([0.1, 0.7, 1.3, 2.0])
    weights = blur_weights(sigma, length_px=edge, kernel_px=kernel)
    made = apply_weights(image.permute(0, 2, 1, 3), weights, weights)
    for i in range(4):
        expected = torchvision.gaussian_blur(image[i], [kernel, kernel], [float(sigma[i])] * 2)
        torch.testing.assert_close(made[i], expected, atol=1e-5, rtol=0)


def test_blur_keeps_a_constant_and_lowers_variance() -> None:
    weights = blur_weights(torch.tensor([1.5]), length_px=SOURCE, kernel_px=9)
    flat = torch.full((1, SOURCE, 3, SOURCE), 0.3)
    torch.testing.assert_close(
        apply_weights(flat, weights, weights), flat.permute(0, 2, 1, 3), atol=1e-6, rtol=0
    )
    noise = pixels(1)
    assert apply_weights(noise.permute(0, 2, 1, 3), weights, weights).var() < 0.2 * noise.var()


@pytest.mark.parametrize(("width", "height", "out_px"), [(40, 31, 16), (9, 23, 30), (13, 40, 13)])
def test_bytes_are_resized_as_pil_does(width: int, height: int, out_px: int) -> None:
    image = pixels(1).mul(255).round()
    across, down = (
        crop_weights(
            torch.tensor([0]),
            torch.tensor([length]),
            torch.tensor([False]),
            source_px=SOURCE,
            out_px=out_px,
        )
        for length in (width, height)
    )
    made = resize_bytes(image.permute(0, 2, 1, 3), down, across)
    array = image[0, :, :height, :width].to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    cubic = Image.Resampling.BICUBIC
    wide = Image.fromarray(array).resize((out_px, height), cubic)
    expected = torch.from_numpy(np.array(wide.resize((out_px, out_px), cubic)))
    difference = (made[0].permute(1, 2, 0) - expected).abs()
    assert difference.max() <= 1  # a tie may fall either way
    assert (difference > 0).float().mean() < 0.002
