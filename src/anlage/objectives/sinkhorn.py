"""Balanced targets: Sinkhorn-Knopp as one bias a prototype.

Shape suffixes: B rows (tiles or masked patches of the whole batch), P prototypes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from anlage.objectives.refusals import need_positive


@torch.no_grad()
def sinkhorn_bias(logits_BP: Tensor, *, temperature: float, n_iterations: int = 3) -> Tensor:
    """The bias that makes a softmax over prototypes balanced over the batch.

    Sinkhorn-Knopp alternates between giving every prototype the same total and every row a total
    of one. Its last step is per row, so its result is a softmax of the logits plus one number a
    prototype; only that P-vector is kept, and log-sum-exp keeps it finite for any logits. Only
    ``column_lse_P`` mixes rows, so that many ranks need to reduce nothing else.

        bias_p = -log sum_b exp(logit_bp / temperature + row_b)
        row_b  = -log sum_p exp(logit_bp / temperature + bias_p)

    Args:
        logits_BP: Teacher logits, (B, P), any floating dtype; B may be 0.
        temperature: Teacher temperature, > 0.
        n_iterations: Rounds, >= 1.

    Returns:
        (P,) float32 bias, to be added to ``logits / temperature``; zeros when B is 0.

    Raises:
        ValueError: If the logits are not 2-D, the temperature is not positive, or there is no
            iteration.

    Source: Caron et al. 2020, SwAV, arXiv:2006.09882; three iterations as in DINOv2. Equal to
        its iteration on the matrix exp(logits / temperature).
    """
    need_positive("sinkhorn_bias", "temperature", temperature)
    if logits_BP.ndim != 2 or n_iterations < 1:
        msg = (
            "sinkhorn_bias: needs (B, P) logits and n_iterations >= 1; got shape "
            f"{tuple(logits_BP.shape)} and n_iterations={n_iterations}. "
            "Flatten views and tokens into rows; DINOv2 runs 3 iterations."
        )
        raise ValueError(msg)
    if not len(logits_BP):
        return logits_BP.new_zeros(logits_BP.shape[1], dtype=torch.float32)
    with torch.autocast(logits_BP.device.type, enabled=False):
        score_BP = logits_BP.float() / temperature
        column_lse_P = score_BP.logsumexp(dim=0)
        for _ in range(n_iterations - 1):
            row_lse_B = (score_BP - column_lse_P).logsumexp(dim=1)
            column_lse_P = (score_BP - row_lse_B[:, None]).logsumexp(dim=0)
    return -column_lse_P


@torch.no_grad()
def sinkhorn_targets(logits_BP: Tensor, *, temperature: float, n_iterations: int = 3) -> Tensor:
    """Teacher targets whose mass is spread about evenly over the prototypes.

    Args:
        logits_BP: Teacher logits, (B, P), of everything that is to be balanced together; B may
            be 0.
        temperature: Teacher temperature, > 0.
        n_iterations: Rounds, >= 1.

    Returns:
        (B, P) float32, rows sum to 1; columns sum to about B / P.

    Raises:
        ValueError: As ``sinkhorn_bias``.

    Source: as ``sinkhorn_bias``.
    """
    bias_P = sinkhorn_bias(logits_BP, temperature=temperature, n_iterations=n_iterations)
    return (logits_BP.float() / temperature + bias_P).softmax(dim=-1)


@torch.no_grad()
def target_entropy(targets_BP: Tensor) -> Tensor:
    """Mean entropy of the targets, a sign of collapse when it leaves its usual range.

    Args:
        targets_BP: (..., P) rows that sum to 1.

    Returns:
        Scalar float32, nats, from 0 (one-hot) to ``log P`` (uniform).
    """
    entropy_B: Tensor = torch.special.entr(targets_BP.float()).sum(dim=-1)
    return entropy_B.mean()
