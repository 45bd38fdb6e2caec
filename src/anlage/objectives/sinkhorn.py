"""Balanced targets: Sinkhorn-Knopp as one bias a prototype.

Shape suffixes: B rows (tiles or masked patches of the whole batch), R rows of a piece, P
prototypes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from anlage.distributed import ALONE, Ranks
from anlage.objectives.prototypes import PrototypeScores


@torch.no_grad()
def sinkhorn_bias(
    scores: PrototypeScores, *, n_iterations: int = 3, ranks: Ranks = ALONE
) -> Tensor:
    """The bias that makes a softmax over prototypes balanced over the batch.

    Sinkhorn-Knopp alternates between giving every prototype the same total and every row a total
    of one. Its last step is per row, so its result is a softmax of the scores plus one number a
    prototype; only that P-vector is kept, and log-sum-exp keeps it finite for any scores. Only
    ``column_lse_P`` mixes rows, so that pieces and ranks merge nothing else.

        bias_p = -log sum_b exp(score_bp + row_b),   row_b = -log sum_p exp(score_bp + bias_p)

    Args:
        scores: The teacher's scores of everything that is to be balanced together.
        n_iterations: Rounds, >= 1.
        ranks: Processes whose rows are balanced together; each may have another number of them.

    Returns:
        (P,) float32 bias, to be added to the scores, the same on all ranks; zeros when none of them
            has a row.

    Raises:
        ValueError: If there is no iteration.

    Source: Caron et al. 2020, SwAV, arXiv:2006.09882; three iterations as in DINOv2. Equal to
        its iteration on the matrix exp(scores).
    """
    if n_iterations < 1:
        msg = f"sinkhorn_bias: needs n_iterations >= 1; got {n_iterations}. DINOv2 runs 3."
        raise ValueError(msg)
    dtype = torch.promote_types(scores.prototypes_PE.dtype, torch.float32)
    column_lse_P = scores.prototypes_PE.new_full((scores.n_prototypes,), -torch.inf, dtype=dtype)
    for tiles in scores.pieces():
        score_RP = scores.of(tiles).flatten(0, 1)
        column_lse_P = torch.logaddexp(column_lse_P, score_RP.logsumexp(dim=0))
    column_lse_P = ranks.log_sum_exp(column_lse_P)
    for _ in range(n_iterations - 1):
        share_P = torch.zeros_like(column_lse_P)
        for tiles in scores.pieces():
            share_RP = scores.shifted(tiles, -column_lse_P).flatten(0, 1)
            # of each column one value is at least 1 / rows, so that no sum below is 0
            share_RP.sub_(share_RP.amax(dim=1, keepdim=True)).exp_()
            share_P.addmv_(share_RP.T, share_RP.sum(dim=1).reciprocal_())
        column_lse_P = column_lse_P + ranks.sum(share_P).log()
    return torch.where(column_lse_P.isneginf(), 0.0, -column_lse_P)  # -inf where there is no row
