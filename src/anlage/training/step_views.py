"""The views of a step's tiles: cut, coloured, normalised and masked, part by part.

Shape suffixes: b tiles of a rank.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil

import numpy as np
from numpy.typing import NDArray

from anlage.tiles.augment.multi_crop import views
from anlage.tiles.masking import block_masks
from anlage.tiles.stream import TileBatch
from anlage.training.distill import Guide
from anlage.training.lesson import GLOBAL_VIEWS, MaskedPatches, Part
from anlage.training.networks import Pupil
from anlage.training.objective_config import Objective
from anlage.training.training_state import Training

SPARE_IMAGES = 4  # masked ones beyond the expected number, of the greatest ratio
ROUND_TO = 64


def cut_parts(training: Training, batch: TileBatch) -> list[Part]:
    """Cut and colour the views of this rank's tiles and draw their masks, part by part.

    Args:
        training: Settings; the pixels go to its device.
        batch: This rank's tiles.
    """
    config = training.config
    pixels = batch.pixels.to(training.device, non_blocking=True)
    size = len(batch.g) // config.accumulate
    parts = []
    for first in range(0, len(batch.g), size):
        tiles = slice(first, first + size)
        cut = views(pixels[tiles], batch.g[tiles], spec=config.views, seed=config.seed)
        parts.append(
            Part(
                global_crops=cut.global_crops.sub_(training.mean).div_(training.std),
                local_crops=cut.local_crops.sub_(training.mean).div_(training.std),
                tiles=tiles,
                masked=_masked(training, batch.g[tiles]),
            )
        )
    return parts


def _masked(training: Training, g: NDArray[np.int64]) -> MaskedPatches | None:
    config = training.config
    if not config.objective.uses_patches or isinstance(training.student, Pupil):
        return None
    grid = config.views.global_px // config.model.patch_px
    masks = block_masks(
        g,
        n_views=GLOBAL_VIEWS,
        grid=(grid, grid),
        seed=config.seed,
        share=config.objective.masked_share,
        ratio=config.objective.mask_ratio,
    )
    bound = 0
    if config.engine.compile != "none":
        bound = most_masked(config.objective, n_images=GLOBAL_VIEWS * len(g), n_patches=grid**2)
    return MaskedPatches.of(masks, device=training.device, bound=bound)


def as_guide_sees(part: Part, training: Training, guide: Guide) -> Part:
    """The same views, normalised as the frozen teacher was trained with."""
    pixels = part.global_crops * training.std + training.mean
    return replace(part, global_crops=(pixels - guide.mean) / guide.std)


def most_masked(objective: Objective, *, n_images: int, n_patches: int) -> int:
    """A number of masked patches that no step exceeds, so that tensors keep their shape.

    Masks are dealt evenly over consecutive tiles (see ``block_masks``), so that their number
    strays from its mean by less than that of a few images.

    Args:
        objective: Says how many images are masked, and how much of each.
        n_images: Global views of a part.
        n_patches: Patches of each.

    Returns:
        The bound, at most all patches, rounded up to a multiple of 64.
    """
    low, high = objective.mask_ratio
    expected = objective.masked_share * n_images * (low + high) / 2 * n_patches
    bound = min(expected + SPARE_IMAGES * high * n_patches, n_images * n_patches)
    return ceil(bound / ROUND_TO) * ROUND_TO
