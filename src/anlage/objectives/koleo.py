"""The KoLeo regulariser: pushes each tile away from its nearest neighbour.

Shape suffixes: B tiles in the batch, D embedding width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from anlage.objectives.refusals import need_batch

SMALLEST_DISTANCE = 1e-8


def koleo_loss(embedding_BD: Tensor, *, reduction: Literal["mean", "none"] = "mean") -> Tensor:
    """Minus the log-distance to the nearest neighbour; minimising it spreads the batch out.

    An estimate of minus the entropy of the batch. The gradient grows as one over the distance,
    so near-duplicates dominate it; ``kde_loss`` is bounded. Exact duplicates cost 18.4 and,
    having no direction to part in, get no gradient. Runs in float32 whatever autocast says.

        L = -mean_i log( min_{j != i} |z_i - z_j| + 1e-8 ),   |z| = 1

    Args:
        embedding_BD: Student CLS embeddings of one view, (B, D), any floating dtype, not
            normalised.
        reduction: ``mean`` over tiles, or ``none`` for one value a tile.

    Returns:
        Scalar float32 loss, or (B,). At least ``-log 2`` (two opposite points).

    Raises:
        ValueError: If ``embedding_BD`` is not 2-D or holds fewer than two rows.

    Source: Sablayrolles et al. 2018, arXiv:1806.03198, as in DINOv2, which also adds 1e-8 to
        each coordinate of the difference.
    """
    need_batch("koleo_loss", embedding_BD)
    with torch.autocast(embedding_BD.device.type, enabled=False):
        unit_BD = functional.normalize(embedding_BD.float(), dim=-1)
        with torch.no_grad():
            cosine_BB = unit_BD @ unit_BD.T
            nearest_B = cosine_BB.fill_diagonal_(-torch.inf).argmax(dim=-1)
        distance_B: Tensor = torch.linalg.vector_norm(unit_BD - unit_BD[nearest_B], dim=-1)
        crowding_B = -(distance_B + SMALLEST_DISTANCE).log()
    return crowding_B if reduction == "none" else crowding_B.mean()
