"""Weights at another patch or image size: FlexiViT's promise, least squares, and timm beside."""

import numpy as np
import pytest
import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch.nn import functional

from anlage.encoders.adapt import adapt_patch_projection, adapt_position_grid


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def resized(patches: torch.Tensor, edge: int) -> torch.Tensor:
    return functional.interpolate(patches, size=(edge, edge), mode="bicubic", antialias=True)


@pytest.mark.parametrize(("edge", "larger"), [(14, 16), (8, 16), (16, 32), (5, 7)])
def test_a_larger_patch_gives_the_same_product_exactly(edge, larger):
    filters, patches = numbers(6, 3, edge, edge), numbers(20, 3, edge, edge, seed=1)
    new = adapt_patch_projection(filters, patch_px=larger)
    got = functional.conv2d(resized(patches, larger), new)
    torch.testing.assert_close(got, functional.conv2d(patches, filters), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("edge", "smaller"), [(16, 14), (16, 8), (14, 5)])
def test_a_smaller_patch_is_the_least_squares_solution(edge, smaller):
    filters = numbers(2, 3, edge, edge)
    resize = np.stack(
        [
            resized(torch.from_numpy(unit).reshape(1, 1, edge, edge), smaller).flatten().numpy()
            for unit in np.eye(edge**2)
        ],
        axis=1,
    )
    wanted = np.linalg.lstsq(resize.T, filters.reshape(6, -1).numpy().T, rcond=None)[0].T
    got = adapt_patch_projection(filters, patch_px=smaller)
    np.testing.assert_allclose(got.reshape(6, -1), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("wanted", [8, 14, 32])
def test_patch_projection_equals_timms(wanted):
    filters = numbers(5, 3, 16, 16).float()
    ours = adapt_patch_projection(filters, patch_px=wanted)
    torch.testing.assert_close(
        ours, resample_patch_embed(filters, [wanted, wanted]), atol=1e-5, rtol=1e-4
    )
    assert ours.dtype == torch.float32


def test_the_same_edge_changes_nothing():
    filters, positions = numbers(2, 3, 4, 4), numbers(1, 9, 5)
    assert adapt_patch_projection(filters, patch_px=4) is filters
    assert adapt_position_grid(positions, to_grid=(3, 3)) is positions


@pytest.mark.parametrize("grid", [(14, 14), (4, 9)])
def test_position_grid_equals_timms(grid):
    positions = numbers(1, 49, 6).float()
    wanted = resample_abs_pos_embed(positions, list(grid), num_prefix_tokens=0)
    torch.testing.assert_close(adapt_position_grid(positions, to_grid=grid), wanted)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="positions of a square grid; got 10"):
        adapt_position_grid(numbers(1, 10, 6), to_grid=(2, 2))
    with pytest.raises(ValueError, match=r"\(D, C, P, P\) filters"):
        adapt_patch_projection(numbers(2, 3, 4, 5), patch_px=4)
    with pytest.raises(ValueError, match="patch_px=0"):
        adapt_patch_projection(numbers(2, 3, 4, 4), patch_px=0)
