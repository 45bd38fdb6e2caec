"""Losses of grades that have an order, such as ISUP's.

Shape suffixes: B bags, K thresholds between grades (one fewer than grades), G grades.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from anlage.objectives.slide_targets import need_finite, need_shapes, need_whole_numbers

Link = Literal["coral", "cumulative"]


def ordinal_loss(logits_BK: Tensor, target_B: Tensor, *, link: Link = "coral") -> Tensor:
    """How far the thresholds are from a bag's grade, in float32.

    Logit k is that of "the grade is above k". ``coral`` sums the binary cross entropy of all
    thresholds; ``cumulative`` is the likelihood of the grade, the proportional odds model.

        coral:       - sum_k  [y > k] log s(z_k) + [y <= k] log s(-z_k)
        cumulative:  - log( s(z_{y-1}) - s(z_y) ),   s(z_{-1}) = 1,  s(z_K) = 0

    Args:
        logits_BK: (B, K) logits, any floating dtype; for ``cumulative`` falling along K, as
            ``OrderedHead`` makes them.
        target_B: (B,) grade of each bag, 0 to K.
        link: Which of the two.

    Returns:
        (B,) float32, 0 or more.

    Raises:
        ValueError: If a shape does not fit, a logit is not finite, a grade is none, ``link`` is
            unknown, or logits do not fall where they must.

    Source: Cao et al. 2020, CORAL, arXiv:1901.07884, equation 6; McCullagh 1980 for the likelihood.
    """
    need_shapes("ordinal_loss", logits_BK, target_B)
    need_finite("ordinal_loss", "logits", logits_BK)
    if link not in {"coral", "cumulative"}:
        msg = f"ordinal_loss: needs link 'coral' or 'cumulative'; got {link!r}. Choose one of them."
        raise ValueError(msg)
    n_thresholds = logits_BK.shape[1]
    grade_B = need_whole_numbers("ordinal_loss", target_B, n_classes=n_thresholds + 1).long()
    logit_BK = logits_BK.float()
    if link == "coral":
        is_above_BK = grade_B[:, None] > torch.arange(n_thresholds, device=logit_BK.device)
        signed_BK = torch.where(is_above_BK, logit_BK, -logit_BK)
        return -functional.logsigmoid(signed_BK).sum(dim=1)
    return _grade_surprise(logit_BK, grade_B)


def grade_probabilities(logits_BK: Tensor) -> Tensor:
    """Probability of each grade.

    A threshold counts as no more likely to be passed than the one below it, so that no probability
    is negative even where a plain linear head gave logits that rise.

    Args:
        logits_BK: (B, K) logits of "the grade is above k".

    Returns:
        (B, G) float32, G = K + 1, 0 or more, summing to 1.
    """
    above_BK = logits_BK.float().sigmoid().cummin(dim=1).values
    one_B1 = above_BK.new_ones(len(above_BK), 1)
    return torch.cat([one_B1, above_BK], dim=1) - torch.cat([above_BK, one_B1 * 0], dim=1)


def _grade_surprise(logit_BK: Tensor, grade_B: Tensor) -> Tensor:
    """(B,) minus log of s(a) - s(b) for the logits a > b around each grade.

    s(a) - s(b) = s(a) s(-b) (1 - exp(b - a)), whose parts do not cancel.
    """
    if bool((logit_BK.diff(dim=1) >= 0).any()):
        msg = (
            "ordinal_loss: needs logits that fall from threshold to threshold; got some that do "
            "not. Give the model an ordered head, or take link 'coral'."
        )
        raise ValueError(msg)
    n_thresholds = logit_BK.shape[1]
    below_B = logit_BK.gather(1, (grade_B - 1).clamp(min=0)[:, None])[:, 0]
    above_B = logit_BK.gather(1, grade_B.clamp(max=n_thresholds - 1)[:, None])[:, 0]
    is_first_B, is_last_B = grade_B == 0, grade_B == n_thresholds
    is_between_B = ~(is_first_B | is_last_B)
    gap_B = torch.where(is_between_B, below_B - above_B, 1.0)
    log_B = torch.where(is_between_B, torch.log(-torch.expm1(-gap_B)), 0.0)
    log_B = log_B + torch.where(is_first_B, 0.0, functional.logsigmoid(below_B))
    return -(log_B + torch.where(is_last_B, 0.0, functional.logsigmoid(-above_B)))
