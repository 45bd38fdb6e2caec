"""The kernel-density regulariser: spreads a batch over the hypersphere.

Shape suffixes: B tiles in the batch, D embedding width.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from anlage.objectives.refusals import need_batch, need_positive


def kde_loss(
    embedding_BD: Tensor,
    *,
    concentration: float = 5.0,
    reduction: Literal["mean", "none"] = "mean",
) -> Tensor:
    """Log-density of a batch on the unit hypersphere; minimising it spreads the batch out.

    Each embedding is scored by a von Mises-Fisher kernel density estimate built from the
    *other* embeddings of the batch, so the gradient stays bounded when two tiles coincide
    (KoLeo's grows as one over their distance). Runs in float32 whatever autocast says.

        L = mean_i log( 1/(B-1) * sum_{j != i} exp(concentration * z_i . z_j) ),   |z| = 1

    Args:
        embedding_BD: Student CLS embeddings of one view, (B, D), any floating dtype, not
            normalised.
        concentration: Kernel sharpness (kappa), > 0, dimensionless.
        reduction: ``mean`` over tiles, or ``none`` for one value a tile.

    Returns:
        Scalar float32 loss, or (B,). At most ``concentration`` (batch collapsed to one point).

    Raises:
        ValueError: If ``embedding_BD`` is not 2-D or holds fewer than two rows, or
            ``concentration`` is not positive.

    Source: Zimmermann et al. 2024, Virchow2, arXiv:2408.00738 (KDE in place of KoLeo).
    """
    need_batch("kde_loss", embedding_BD)
    need_positive("kde_loss", "concentration", concentration)
    with torch.autocast(embedding_BD.device.type, enabled=False):
        unit_BD = functional.normalize(embedding_BD.float(), dim=-1)
        score_BB = concentration * unit_BD @ unit_BD.T
        score_BB.fill_diagonal_(-torch.inf)  # a tile is not its own neighbour
        density_B = score_BB.logsumexp(dim=-1) - math.log(len(score_BB) - 1)
    return density_B if reduction == "none" else density_B.mean()
