"""Losses of survival: Cox's partial likelihood, and hazards of a few intervals.

Shape suffixes: B bags, E bags with an event, C intervals (bins), N train patients.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from anlage.objectives.slide_targets import need_finite, need_shapes, need_whole_numbers

Ties = Literal["efron", "breslow"]


def cox_loss(risk_B: Tensor, time_B: Tensor, event_B: Tensor, *, ties: Ties = "efron") -> Tensor:
    """Negative log partial likelihood of a step's bags, a mean over its events, in float32.

    Each event is compared with the bags still at risk, so all bags of a step are needed at once.
    A step in which all are censored says nothing: its loss is 0 and its gradient zero.

        L = 1/E sum_i ( log sum_j w_ij exp(r_j) - r_i )

    where w_ij is 1 for bags at risk at event i and 0 for others; in Efron's form the d events at
    one time are left out of the l-th one's sum by l / d (l from 0), in Breslow's not at all.

    Args:
        risk_B: (B,) or (B, 1) log hazards, any floating dtype.
        time_B: (B,) time of the event or of the end of follow-up, 0 or more, any one unit.
        event_B: (B,) bool or 0/1: 1 where the event was seen.
        ties: How events at one time share their risk set.

    Returns:
        Scalar float32: 0 or more under Breslow, the mean of log(1 - l / d) or more under Efron.

    Raises:
        ValueError: If a shape does not fit, a value is not finite, a time is negative, an event
            neither 0 nor 1, or ``ties`` is unknown.

    Source: Cox 1972; Breslow 1974; Efron 1977. In deep learning: Katzman et al. 2018, DeepSurv,
        arXiv:1606.00931.
    """
    risk_B1 = risk_B[:, None] if risk_B.ndim == 1 else risk_B
    need_shapes("cox_loss", risk_B1, time_B, n_outputs=1)
    need_finite("cox_loss", "risks", risk_B)
    is_event_B = _checked_follow_up("cox_loss", time_B, event_B)
    if ties not in {"efron", "breslow"}:
        msg = f"cox_loss: needs ties to be 'efron' or 'breslow'; got {ties!r}. Choose one of them."
        raise ValueError(msg)
    risk = risk_B1[:, 0].float()
    if not bool(is_event_B.any()):
        return (risk * 0).sum()
    time_E = time_B[is_event_B]
    weight_EB = (time_B >= time_E[:, None]).float()
    if ties == "efron":
        is_tied_EE = time_E == time_E[:, None]
        number_E = is_tied_EE.tril(diagonal=-1).sum(dim=1)
        weight_EB[:, is_event_B] -= is_tied_EE * (number_E / is_tied_EE.sum(dim=1))[:, None]
    at_risk_E = (risk + weight_EB.log()).logsumexp(dim=1)
    return (at_risk_E - risk[is_event_B]).mean()


def survival_bins(time_N: Tensor, event_N: Tensor, *, n_bins: int = 4) -> Tensor:
    """Edges of intervals with equally many events, from the train side only.

    Args:
        time_N: (N,) times, 0 or more.
        event_N: (N,) bool or 0/1; the quantiles are those of rows with an event.
        n_bins: Intervals C, 2 or more.

    Returns:
        (C - 1,) float64 inner edges, rising. The first interval starts at 0, the last has no end.

    Raises:
        ValueError: If the times or events are unusable, ``n_bins`` is below 2, or so few times
            differ that two edges coincide.

    Source: Chen et al. 2021, MCAT, ICCV, section 3 (quartiles of uncensored times).
    """
    is_event_N = _checked_follow_up("survival_bins", time_N, event_N)
    if n_bins < 2:
        msg = f"survival_bins: needs 2 bins or more; got {n_bins}. MCAT uses 4."
        raise ValueError(msg)
    time_E = time_N[is_event_N].double()
    share_C = torch.arange(1, n_bins, dtype=torch.float64, device=time_N.device) / n_bins
    edges_C = torch.quantile(time_E, share_C) if len(time_E) else time_E
    if not len(edges_C) or bool((edges_C.diff() <= 0).any()) or edges_C[0] <= time_E.min():
        msg = (
            f"survival_bins: needs {n_bins} or more events at different times; got {len(time_E)} "
            f"events at {len(set(time_E.tolist()))} times. Ask for fewer bins, or use cox_loss."
        )
        raise ValueError(msg)
    return edges_C


def bin_of(time_B: Tensor, edges_C: Tensor) -> Tensor:
    """(B,) int64 interval of each time; an edge belongs to the interval that it begins."""
    return torch.bucketize(time_B.double().contiguous(), edges_C, right=True)


def hazard_loss(
    logits_BC: Tensor, bin_B: Tensor, event_B: Tensor, *, censored_weight: float = 1.0
) -> Tensor:
    """Negative log likelihood of the interval of the event or of censoring, in float32.

    With hazards h_c = sigmoid(z_c), the chance of an event in interval c of who came to it:

        event in y:     - log h_y - sum_{c < y} log(1 - h_c)
        censored in y:  - sum_{c <= y} log(1 - h_c)

    Args:
        logits_BC: (B, C) logits, any floating dtype.
        bin_B: (B,) interval of the event or of the end of follow-up, 0 to C - 1.
        event_B: (B,) bool or 0/1.
        censored_weight: Weight of censored bags, 0 to 1: 1 - alpha of MCAT's code.

    Returns:
        (B,) float32, 0 or more.

    Raises:
        ValueError: If a shape does not fit, a logit is not finite, an interval or an event is none,
            or the weight is not in 0 to 1.

    Source: Zadeh & Schmid 2020, IEEE TPAMI 43(9), equation 6; Chen et al. 2021, MCAT, which counts
        a censored patient as alive to the end of the interval.
    """
    need_shapes("hazard_loss", logits_BC, bin_B)
    need_finite("hazard_loss", "logits", logits_BC)
    bin_ = need_whole_numbers("hazard_loss", bin_B, n_classes=logits_BC.shape[1]).long()
    is_event_B = _checked_follow_up("hazard_loss", bin_, event_B)
    if not 0 <= censored_weight <= 1:
        msg = (
            f"hazard_loss: needs 0 <= censored_weight <= 1; got {censored_weight}. "
            "1 is the likelihood; less trusts events more."
        )
        raise ValueError(msg)
    number_C = torch.arange(logits_BC.shape[1], device=logits_BC.device)
    is_event_here_BC = (number_C == bin_[:, None]) & is_event_B[:, None]
    is_alive_BC = (number_C <= bin_[:, None]) & ~is_event_here_BC
    logit_BC = logits_BC.float()
    alive_B = (functional.logsigmoid(-logit_BC) * is_alive_BC).sum(dim=1)
    event_log_B = (functional.logsigmoid(logit_BC) * is_event_here_BC).sum(dim=1)
    return -(alive_B + event_log_B) * torch.where(is_event_B, 1.0, censored_weight)


def hazard_survival(logits_BC: Tensor) -> Tensor:
    """(B, C) float32 chance to live past the end of each interval, falling."""
    return functional.logsigmoid(-logits_BC.float()).cumsum(dim=1).exp()


def hazard_risk(logits_BC: Tensor) -> Tensor:
    """(B,) float32 minus the expected number of intervals lived through, -C to 0.

    Larger is worse, so that concordance reads it as a log hazard.

    Source: Chen et al. 2021, MCAT.
    """
    return -hazard_survival(logits_BC).sum(dim=1)


def _checked_follow_up(who: str, time_B: Tensor, event_B: Tensor) -> Tensor:
    """Events as bool, times and events refused where they are none."""
    if time_B.ndim != 1 or event_B.shape != time_B.shape:
        msg = (
            f"{who}: needs one time and one event for each bag; got shapes "
            f"{tuple(time_B.shape)} and {tuple(event_B.shape)}. Take both from the same rows."
        )
        raise ValueError(msg)
    need_finite(who, "times", time_B)
    if bool((time_B < 0).any()):
        msg = (
            f"{who}: needs times of 0 or more; got {float(time_B.min()):g}. "
            "Count from the start of follow-up, and leave out rows without it."
        )
        raise ValueError(msg)
    return need_whole_numbers(who, event_B, n_classes=2).bool()
