"""What hidden tiles cost without any learning: the floors of the masked error.

Shape suffixes: T tiles of all bags, L tiles of a bag, B bags, I width of a tile embedding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from scipy.spatial import cKDTree
from torch import Tensor

from anlage.objectives.masked_slide import masked_tile_error, standardised
from anlage.training.slide_pretraining.networks import MaskedBags

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]


def mean_floor(bags: MaskedBags) -> Tensor:
    """Error of predicting each hidden tile as the mean of its slide's visible ones, (B,) float32.

    Stronger than the mean of a whole collection, for it knows the slide.
    """
    return _error_of(bags, lambda target_LI, seen_L, _: target_LI[seen_L].mean(dim=0))


def copy_floor(bags: MaskedBags) -> Tensor:
    """Error of predicting each hidden tile as the nearest visible one of its slide, (B,) float32.

    Nearest by the cells' distance; of several as near, whichever the search finds first.
    """

    def copied(target_LI: Tensor, seen_L: Tensor, cell_L2: Tensor) -> Tensor:
        tree = cKDTree(cell_L2[seen_L].numpy())
        _, nearest = tree.query(cell_L2[~seen_L].numpy())
        return target_LI[seen_L][torch.from_numpy(nearest)]

    return _error_of(bags, copied)


def _error_of(bags: MaskedBags, predict: Predict) -> Tensor:
    target_TI = standardised(bags.features_TI)
    lengths = list(bags.lengths)
    of_bags = zip(
        torch.split(target_TI, lengths),
        torch.split(bags.is_visible_T, lengths),
        torch.split(bags.cell_T2, lengths),
        strict=True,
    )
    predicted = [
        predict(target_LI, seen_L, cell_L2).expand(int((~seen_L).sum()), -1)
        for target_LI, seen_L, cell_L2 in of_bags
    ]
    return masked_tile_error(torch.cat(predicted), target_TI[~bags.is_visible_T], bags.n_hidden)
