from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anlage.tiles.masking import block_masks

GRID = (8, 8)


def masked(g: range | list[int], **changed: Any) -> torch.Tensor:
    n_views = changed.pop("n_views", 2)
    arguments: dict[str, Any] = {"grid": GRID, "seed": 3, **changed}
    masks = block_masks(g, n_views=n_views, **arguments)
    return masks.view(n_views, len(g), -1)


def test_shape_and_type() -> None:
    masks = block_masks(range(5), n_views=2, grid=(3, 7), seed=0)
    assert masks.shape == (10, 21)
    assert masks.dtype == torch.bool


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    first=st.integers(0, 2**40),
    share=st.sampled_from([0.25, 0.5, 0.9]),
    n_views=st.integers(1, 3),
)
def test_any_window_is_masked_to_the_share_with_even_ratios(
    seed: int, first: int, share: float, n_views: int
) -> None:
    g = range(first, first + 60)
    count = masked(g, seed=seed, share=share, n_views=n_views, grid=(10, 10)).sum(-1)
    n = 60 * n_views
    assert abs(int((count > 0).sum()) - n * share) <= 3
    counts = np.sort(count[count > 0].numpy())
    assert counts.min() >= 10
    assert counts.max() <= 50
    even = 10 + 40 * (np.arange(len(counts)) + 0.5) / len(counts)
    assert np.abs(counts - even).max() <= 3 + 40 * 3 / len(counts)


def test_each_view_is_masked_to_the_share() -> None:
    hit = masked(range(1000)).any(-1).float().mean(dim=1)
    torch.testing.assert_close(hit, torch.tensor([0.5, 0.5]), atol=0.01, rtol=0)


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (4, 4), (7, 7), (16, 9)])
@pytest.mark.parametrize("ratio", [(0.1, 0.5), (0.3, 0.3), (0.9, 1.0)])
def test_the_count_is_exact(grid: tuple[int, int], ratio: tuple[float, float]) -> None:
    n = grid[0] * grid[1]
    count = masked(range(40), grid=grid, ratio=ratio, share=1.0).sum(-1)
    assert count.min() >= max(1, int(n * ratio[0]))
    assert count.max() <= max(1, int(n * ratio[1]))
    if ratio == (0.3, 0.3):
        assert (count == max(1, int(n * 0.3))).all()


def test_a_sample_s_mask_does_not_depend_on_the_batch() -> None:
    together = masked(range(30))
    for g in (0, 11, 29):
        assert torch.equal(masked([g])[:, 0], together[:, g])
    assert torch.equal(masked([17, 4])[:, 1], together[:, 4])


def test_seeds_views_and_samples_differ() -> None:
    masks = masked(range(20), share=1.0)
    assert len({tuple(m.tolist()) for m in masks.flatten(0, 1)}) > 35
    assert not torch.equal(masks, masked(range(20), share=1.0, seed=4))


def perimeter(mask: torch.Tensor) -> int:
    """Sides between a masked and another patch, the outside included, by a plain loop."""
    rows, columns = mask.shape
    sides = 0
    for y in range(rows):
        for x in range(columns):
            for v, u in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                outside = not (0 <= v < rows and 0 <= u < columns)
                sides += bool(mask[y, x]) and (outside or not bool(mask[v, u]))
    return sides


def test_masks_are_blocks_not_dust() -> None:
    masks = masked(range(40), share=1.0, ratio=(0.25, 0.25)).flatten(0, 1)
    scattered = torch.rand(80, 64, generator=torch.Generator().manual_seed(0)).argsort(1) < 16
    blocky = np.mean([perimeter(m.view(GRID)) for m in masks])
    dusty = np.mean([perimeter(m.view(GRID)) for m in scattered])
    assert blocky < 0.6 * dusty


def test_every_patch_is_masked_about_as_often_as_its_mirror() -> None:
    often = masked(range(1500), share=1.0).flatten(0, 1).float().mean(0).view(GRID)
    for mirrored in (often.flip(0), often.flip(1), often.T):
        assert (often - mirrored).abs().max() < 0.06
    assert often.min() > 0.05


def test_no_share_masks_nothing() -> None:
    assert not masked(range(50), share=0.0).any()


@pytest.mark.parametrize(
    "wrong",
    [
        {"share": 1.1},
        {"ratio": (0.0, 0.5)},
        {"ratio": (0.5, 0.1)},
        {"ratio": (0.5, 1.1)},
        {"min_block": 0},
        {"aspect": (2.0, 1.0)},
        {"grid": (0, 4)},
        {"n_views": 0},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"block_masks: needs .*; got .*\. Correct"):
        block_masks([0], **{"n_views": 2, "grid": GRID, "seed": 0, **wrong})


def test_masks_are_pinned() -> None:
    masks = block_masks(range(3), n_views=2, grid=(4, 4), seed=42)
    assert [int("".join(str(int(v)) for v in m), 2) for m in masks] == [0, 0, 2184, 8739, 0, 0]
