from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as torchvision

from anlage.tiles.augment import colour


@pytest.fixture
def images() -> Tensor:
    noise = torch.rand(6, 3, 9, 11, generator=torch.Generator().manual_seed(5))
    noise[0] = 0.4  # grey everywhere: no hue
    noise[1, :, 0] = 0.0
    noise[1, :, 1] = 1.0
    noise[2, 0] = noise[2, 1]  # two channels tie
    noise[3, 2] = noise[3, 0]
    return noise


@pytest.mark.parametrize(
    ("ours", "theirs", "strengths"),
    [
        (colour.brighten, torchvision.adjust_brightness, (0.0, 0.6, 1.0, 1.4, 1.9, 0.3)),
        (colour.contrast, torchvision.adjust_contrast, (0.0, 0.6, 1.0, 1.4, 1.9, 0.3)),
        (colour.saturate, torchvision.adjust_saturation, (0.0, 0.8, 1.0, 1.2, 1.9, 0.3)),
        (colour.shift_hue, torchvision.adjust_hue, (0.1, -0.1, 0.0, 0.5, -0.5, 0.33)),
    ],
)
def test_equals_torchvision_with_one_strength_an_image(
    ours: Callable[[Tensor, Tensor], Tensor],
    theirs: Callable[[Tensor, float], Tensor],
    strengths: tuple[float, ...],
    images: Tensor,
) -> None:
    for shift in range(6):
        factors = strengths[shift:] + strengths[:shift]
        expected = torch.stack([theirs(i, f) for i, f in zip(images, factors, strict=True)])
        made = ours(images, torch.tensor(factors))
        torch.testing.assert_close(made, expected, atol=2e-6, rtol=0)
        assert made.min() >= 0
        assert made.max() <= 1


def test_luminance_equals_torchvision(images: Tensor) -> None:
    torch.testing.assert_close(colour.luminance(images), torchvision.rgb_to_grayscale(images))


def test_solarize_inverts_the_bytes_from_128() -> None:
    every_byte = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    expected = torchvision.solarize(every_byte, 128).float() / 255
    torch.testing.assert_close(colour.solarize(every_byte.float() / 255), expected)


def test_inputs_are_left_alone(images: Tensor) -> None:
    before = images.clone()
    for change in (colour.brighten, colour.contrast, colour.saturate, colour.shift_hue):
        change(images, torch.full((6,), 0.3))
    colour.luminance(images)
    colour.solarize(images)
    torch.testing.assert_close(images, before, atol=0, rtol=0)
