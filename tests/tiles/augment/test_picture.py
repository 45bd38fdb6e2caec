"""One picture at a time against the functions of batches, which are tested against torchvision."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from anlage.tiles.augment import colour, picture
from anlage.tiles.augment.resample import apply_weights, blur_weights
from anlage.tiles.augment.stain import jitter_stains, stain_basis

TOLERANCE = 1e-5


@pytest.fixture(params=["noise", "bytes", "extremes"])
def image(request: pytest.FixtureRequest) -> torch.Tensor:
    noise = torch.rand(1, 3, 23, 19, generator=torch.Generator().manual_seed(3))
    if request.param == "bytes":
        return noise.mul(255).round() / 255
    if request.param == "extremes":
        noise = (3 * noise - 1).clamp(0, 1)
        noise[0, :, 0] = 0.4  # grey: no hue
        noise[0, 0, 1] = noise[0, 1, 1]  # two channels tie
        noise[0, 2, 2] = noise[0, 0, 2]
    return noise


def channels_last(image: torch.Tensor) -> picture.Picture:
    return np.ascontiguousarray(image[0].permute(1, 2, 0).numpy())


def assert_same(made: picture.Picture, expected: torch.Tensor) -> None:
    assert made.dtype == np.float32
    assert made.min() >= 0
    assert made.max() <= 1
    np.testing.assert_allclose(made, channels_last(expected.expand(1, 3, -1, -1)), atol=TOLERANCE)


@pytest.mark.parametrize(
    ("ours", "theirs", "strengths"),
    [
        (picture.brighten, colour.brighten, (0.0, 0.6, 1.0, 1.4, 1.9)),
        (picture.contrast, colour.contrast, (0.0, 0.6, 1.0, 1.4, 1.9)),
        (picture.saturate, colour.saturate, (0.0, 0.8, 1.0, 1.2, 1.9)),
        (picture.shift_hue, colour.shift_hue, (-0.5, -0.34, -0.1, 0.0, 0.1, 0.33, 0.5)),
    ],
)
def test_jitter_equals_that_of_batches(
    ours: Callable[[picture.Picture, float], picture.Picture],
    theirs: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    strengths: tuple[float, ...],
    image: torch.Tensor,
) -> None:
    for strength in strengths:
        made = ours(channels_last(image), strength)
        assert_same(made, theirs(image, torch.tensor([strength])))


def test_grey_and_solarize_equal_those_of_batches(image: torch.Tensor) -> None:
    grey = picture.grayscale(channels_last(image))
    assert grey.shape == image.shape[2:]
    assert_same(np.stack([grey] * 3, axis=-1), colour.luminance(image))
    assert_same(picture.solarize(channels_last(image)), colour.solarize(image))


@pytest.mark.parametrize("kernel_px", [1, 9, 17])
@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_equals_that_of_batches(sigma: float, kernel_px: int, image: torch.Tensor) -> None:
    square = image[..., :19, :]
    weights = blur_weights(torch.tensor([sigma]), length_px=19, kernel_px=kernel_px)
    made = picture.blur(channels_last(square), sigma=sigma, kernel_px=kernel_px)
    assert_same(made, apply_weights(square.permute(0, 2, 1, 3), weights, weights))


def test_blur_does_not_make_white_whiter() -> None:
    white = np.ones((31, 31, 3), np.float32)
    for sigma in np.linspace(0.1, 2, 50):
        assert picture.blur(white, sigma=float(sigma), kernel_px=9).max() <= 1


@pytest.mark.parametrize("vectors", [None, ((0.6, 0.7, 0.3), (0.1, 0.9, 0.2))], ids=["hed", "two"])
def test_stains_equal_those_of_batches(
    vectors: tuple[tuple[float, float, float], ...] | None, image: torch.Tensor
) -> None:
    factor, offset = np.array([1.2, 0.7, 0.95]), np.array([-0.15, 0.2, 0.05])
    basis_33 = stain_basis(vectors)
    made = picture.jitter_stains(channels_last(image), factor, offset, basis_33=basis_33.numpy())
    expected = jitter_stains(
        image, torch.tensor(factor[None]), torch.tensor(offset[None]), basis_33=basis_33
    )
    assert_same(made, expected)


def test_pictures_are_left_alone(image: torch.Tensor) -> None:
    given = channels_last(image)
    before = given.copy()
    for change in (picture.brighten, picture.contrast, picture.saturate, picture.shift_hue):
        change(given, 1.3)
        change(given, 0.4)
    picture.grayscale(given)
    picture.solarize(given)
    picture.blur(given, sigma=1.0, kernel_px=9)
    picture.jitter_stains(given, np.ones(3), np.zeros(3), basis_33=stain_basis(None).numpy())
    np.testing.assert_array_equal(given, before)
