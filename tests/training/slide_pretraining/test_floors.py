"""The floors of the masked error against loops over tiles."""

from __future__ import annotations

import numpy as np
import torch

from anlage.training.slide_pretraining.floors import copy_floor, mean_floor
from anlage.training.slide_pretraining.networks import MaskedBags

LENGTHS = (7, 12)


def bags(seed: int = 0) -> MaskedBags:
    draw = np.random.default_rng(seed)
    visible = np.zeros(19, dtype=bool)
    visible[[0, 3, 8, 12, 13]] = True
    cells = np.concatenate([draw.permutation(400)[:n] for n in LENGTHS])  # no two in one cell
    return MaskedBags(
        slide_ids=("a", "b"),
        numbers=(0, 1),
        features_TI=torch.from_numpy(draw.standard_normal((19, 5))).float() * 4,
        cell_T2=torch.from_numpy(np.stack([cells % 20, cells // 20], axis=1)),
        is_visible_T=torch.from_numpy(visible),
        lengths=LENGTHS,
        n_visible=(2, 3),
    )


def slow(masked: MaskedBags, predict) -> list[float]:
    """Errors by loops, of targets standardised one by one."""
    rows = masked.features_TI.double().numpy()
    target = [(row - row.mean()) / np.sqrt(row.var() + 1e-6) for row in rows]
    cells, visible = masked.cell_T2.numpy(), masked.is_visible_T.numpy()
    found, first = [], 0
    for length in LENGTHS:
        own = range(first, first + length)
        seen = [t for t in own if visible[t]]
        errors = [
            np.mean((predict(t, seen, target, cells) - target[t]) ** 2)
            for t in own
            if not visible[t]
        ]
        found.append(float(np.mean(errors)))
        first += length
    return found


def test_the_mean_of_the_slides_visible_tiles() -> None:
    wanted = slow(bags(), lambda _, seen, target, __: np.mean([target[s] for s in seen], axis=0))
    np.testing.assert_allclose(mean_floor(bags()).numpy(), wanted, rtol=1e-5)


def test_the_nearest_visible_tile_of_the_slide() -> None:
    def nearest(tile, seen, target, cells):
        return target[min(seen, key=lambda s: ((cells[s] - cells[tile]) ** 2).sum())]

    for seed in range(5):
        masked = bags(seed)
        np.testing.assert_allclose(copy_floor(masked).numpy(), slow(masked, nearest), rtol=1e-5)


def test_tiles_that_are_all_alike_cost_nothing_to_copy() -> None:
    masked = bags()
    masked.features_TI[:] = masked.features_TI[0]
    assert copy_floor(masked).max() < 1e-10
    assert mean_floor(masked).max() < 1e-10
