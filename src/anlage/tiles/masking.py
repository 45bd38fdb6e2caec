"""Which patches of a global crop the student must guess: blocks, keyed by (seed, g).

Shape suffixes: B samples, V views, N patches of a view, row-major.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp, log, sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anlage.tiles.keyed_random import Purpose, uniforms

GOLDEN_STEP = 0x9E3779B97F4A7C15  # 2**64 / golden ratio: its multiples fill the circle evenly
N_BLOCKS, N_TRIES = 16, 10  # blocks at most, and tries to place each
N_BLOCK_NUMBERS = N_BLOCKS * N_TRIES * 4
MASK_START = 2**63  # item whose number starts the sequence; views are items 0, 1, ...


def block_masks(
    g: Sequence[int] | NDArray[np.int64],
    *,
    n_views: int,
    grid: tuple[int, int],
    seed: int,
    share: float = 0.5,
    ratio: tuple[float, float] = (0.1, 0.5),
    min_block: int = 4,
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> Tensor:
    """Random block masks for the global crops of a batch.

    Whether view v of sample g is masked, and how much of it, is read off a golden-ratio sequence
    over ``n_views * g + v`` that starts at a point set by the seed. Any run of consecutive samples
    is therefore masked to very nearly ``share``, with evenly spread ratios, and yet no mask depends
    on the batch. A masked view has exactly ``max(1, floor(ratio * N))`` masked patches: blocks are
    placed as DINOv2 does, and where they fall short the mask grows by single patches at its border.

    Args:
        g: (B,) global indices of the samples.
        n_views: Views a sample that can be masked (the global crops).
        grid: Rows and columns of patches of a view.
        seed: Seed of the run.
        share: Part of the views that are masked, 0 to 1.
        ratio: Least and greatest part of a masked view's patches that are masked.
        min_block: Least area of a block, patches.
        aspect: Least and greatest height / width of a block, log-uniform between them.

    Returns:
        (n_views * B, N) bool on the CPU, view-major, True on masked patches.

    Raises:
        ValueError: If a setting is out of its range.

    Source: Zhou et al. 2022, iBOT, arXiv:2111.07832 and Oquab et al. 2023, DINOv2,
    arXiv:2304.07193. DINOv2 masks half of each batch with ratios at even steps in random order, and
    lets the count fall short; here both hold for any window of g and the count is exact.
    """
    _refuse(
        {
            "n_views >= 1": n_views >= 1,
            "a grid of at least one patch": min(grid) >= 1,
            "share within 0 and 1": 0 <= share <= 1,
            "0 < ratio[0] <= ratio[1] <= 1": 0 < ratio[0] <= ratio[1] <= 1,
            "min_block >= 1": min_block >= 1,
            "0 < aspect[0] <= aspect[1]": 0 < aspect[0] <= aspect[1],
        },
        f"{n_views=}, {grid=}, {share=}, {ratio=}, {min_block=}, {aspect=}",
    )
    n_patches = grid[0] * grid[1]
    masks = np.zeros((n_views, len(g), n_patches), dtype=np.bool_)
    for sample, index in enumerate(int(i) for i in g):
        for view in range(n_views):
            place = n_views * index + view
            n_masked = masked_count(place, n_patches, seed=seed, share=share, ratio=ratio)
            if n_masked > 0:
                n = N_BLOCK_NUMBERS + n_masked
                numbers = uniforms(n, seed=seed, g=index, purpose=Purpose.MASK, item=view)
                mask = _blocks(numbers, n_masked, grid=grid, min_block=min_block, aspect=aspect)
                _grow(mask, n_masked, numbers[N_BLOCK_NUMBERS:])
                masks[view, sample] = mask.ravel()
    return torch.from_numpy(masks.reshape(n_views * len(g), n_patches))


def masked_count(
    place: int, n_patches: int, *, seed: int, share: float, ratio: tuple[float, float]
) -> int:
    """How many patches of the view at ``place`` in the golden-ratio sequence are masked, or 0."""
    start = uniforms(1, seed=seed, g=0, purpose=Purpose.MASK, item=MASK_START)[0]
    u = (start + (place * GOLDEN_STEP % 2**64) / 2**64) % 1.0
    if u >= share:
        return 0
    low, high = ratio
    return max(1, int(n_patches * (low + (high - low) * u / share)))


def _refuse(rules: Mapping[str, bool], got: str) -> None:
    for rule, holds in rules.items():
        if not holds:
            msg = f"block_masks: needs {rule}; got {got}. Correct it in the recipe."
            raise ValueError(msg)


def _blocks(
    numbers: NDArray[np.float64],
    n_masked: int,
    *,
    grid: tuple[int, int],
    min_block: int,
    aspect: tuple[float, float],
) -> NDArray[np.bool_]:
    """Blocks of at most ``n_masked`` patches in all; a block may overlap those before it."""
    rows, columns = grid
    log_aspect = log(aspect[0]), log(aspect[1])
    mask = np.zeros(grid, dtype=np.bool_)
    tries = iter(numbers[:N_BLOCK_NUMBERS].reshape(N_BLOCKS * N_TRIES, 4).tolist())
    left, failures = n_masked, 0
    for u_area, u_aspect, u_top, u_left in tries:
        if left == 0 or failures == N_TRIES:
            break
        area = min_block + (left - min_block) * u_area
        shape = exp(log_aspect[0] + (log_aspect[1] - log_aspect[0]) * u_aspect)
        height, width = round(sqrt(area * shape)), round(sqrt(area / shape))
        failures += 1
        if 1 <= height <= rows and 1 <= width <= columns:
            top, start = int(u_top * (rows - height + 1)), int(u_left * (columns - width + 1))
            block = mask[top : top + height, start : start + width]
            n_new = height * width - int(np.count_nonzero(block))
            if 0 < n_new <= left:
                block[:] = True
                left, failures = left - n_new, 0
    return mask


def _grow(mask: NDArray[np.bool_], n_masked: int, numbers: NDArray[np.float64]) -> None:
    """Mask single patches beside masked ones (anywhere in an empty mask) up to the exact count."""
    for u in numbers[: n_masked - np.count_nonzero(mask)]:
        wide = np.pad(mask, 1)
        beside = wide[2:, 1:-1] | wide[:-2, 1:-1] | wide[1:-1, 2:] | wide[1:-1, :-2]
        free = np.flatnonzero(beside & ~mask) if mask.any() else np.arange(mask.size)
        mask.flat[free[int(u * len(free))]] = True
