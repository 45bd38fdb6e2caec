"""Centred targets: DINO's other guard against collapse.

Shape suffixes: B rows (tiles or masked patches), P prototypes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from anlage.objectives.refusals import need_positive


def center_bias(center_P: Tensor, *, temperature: float) -> Tensor:
    """What centering adds to the teacher's scores: minus the usual logit of each prototype.

        softmax((logit - center) / temperature) = softmax(score + bias)

    Args:
        center_P: (P,) running mean of the teacher's logits.
        temperature: Teacher temperature, > 0.

    Returns:
        (P,) bias for ``PrototypeTargets``.

    Raises:
        ValueError: If the temperature is not positive.

    Source: Caron et al. 2021, DINO, arXiv:2104.14294, section 3.1.
    """
    need_positive("center_bias", "temperature", temperature)
    return -center_P / temperature


@torch.no_grad()
def next_center(center_P: Tensor, logits_BP: Tensor, *, momentum: float = 0.9) -> Tensor:
    """The running mean of the teacher's logits, one batch later.

    Args:
        center_P: (P,) running mean so far; zeros at the start.
        logits_BP: Teacher logits of the batch, (..., P). No row leaves the centre as it is.
        momentum: Weight of the mean so far, in [0, 1].

    Returns:
        (P,) float32 new centre; the argument is not changed.

    Raises:
        ValueError: If the centre does not fit or the momentum is outside [0, 1].

    Source: Caron et al. 2021, DINO, arXiv:2104.14294, equation 4.
    """
    _check_center("next_center", logits_BP, center_P)
    if not 0 <= momentum <= 1:
        msg = f"next_center: needs 0 <= momentum <= 1; got {momentum}. DINO uses 0.9."
        raise ValueError(msg)
    if not logits_BP.numel():
        return center_P.float()
    mean_P = logits_BP.float().flatten(0, -2).mean(dim=0)
    return torch.lerp(mean_P, center_P.float(), momentum)


def _check_center(who: str, logits_BP: Tensor, center_P: Tensor) -> None:
    if logits_BP.ndim < 2 or center_P.shape != logits_BP.shape[-1:]:
        msg = (
            f"{who}: needs (B, P) logits and a (P,) centre; got shapes {tuple(logits_BP.shape)} "
            f"and {tuple(center_P.shape)}. Keep one centre for each head."
        )
        raise ValueError(msg)
