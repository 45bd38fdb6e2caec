"""Losses of slide labels: binary, one of several classes, several labels at once.

Shape suffixes: B bags, C outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from anlage.objectives.slide_targets import need_finite, need_shapes, need_whole_numbers


def binary_loss(logits_B1: Tensor, target_B: Tensor) -> Tensor:
    """Binary cross entropy of one logit a bag, in float32.

        L = - y log sigmoid(z) - (1 - y) log sigmoid(-z)

    Args:
        logits_B1: (B, 1) logits, any floating dtype.
        target_B: (B,) 0 or 1.

    Returns:
        (B,) float32, 0 or more.

    Raises:
        ValueError: If a shape does not fit, a logit is not finite, or a target is not 0 or 1.

    Source: torch's ``BCEWithLogitsLoss``, without its mean over bags.
    """
    need_shapes("binary_loss", logits_B1, target_B, n_outputs=1)
    need_finite("binary_loss", "logits", logits_B1)
    target = need_whole_numbers("binary_loss", target_B, n_classes=2).float()
    logit_B = logits_B1[:, 0].float()
    positive_B = -functional.logsigmoid(logit_B)
    return target * positive_B - (1 - target) * functional.logsigmoid(-logit_B)


def binary_probability(logits_B1: Tensor) -> Tensor:
    """(B,) float32 probability of the positive class."""
    return logits_B1[:, 0].float().sigmoid()


def class_loss(
    logits_BC: Tensor, target_B: Tensor, *, class_weight_C: Tensor | None = None
) -> Tensor:
    """Cross entropy over classes, each bag times the weight of its class, in float32.

    The weights do not sum to one over a batch, so that bags may be added up one by one.

    Args:
        logits_BC: (B, C) logits, any floating dtype.
        target_B: (B,) class of each bag, 0 to C - 1.
        class_weight_C: (C,) weights, 0 or more; None for 1.

    Returns:
        (B,) float32, 0 or more.

    Raises:
        ValueError: If a shape does not fit, a logit is not finite, a target is no class, or a
            weight is negative.

    Source: torch's ``CrossEntropyLoss``, which divides by the weights of the batch.
    """
    n_classes = logits_BC.shape[-1]
    need_shapes("class_loss", logits_BC, target_B)
    need_finite("class_loss", "logits", logits_BC)
    target = need_whole_numbers("class_loss", target_B, n_classes=n_classes).long()
    loss_B = functional.cross_entropy(logits_BC.float(), target, reduction="none")
    if class_weight_C is None:
        return loss_B
    if class_weight_C.shape != (n_classes,) or not (class_weight_C >= 0).all():
        msg = (
            f"class_loss: needs {n_classes} class weights of 0 or more; got "
            f"{class_weight_C.tolist()}. Give one weight a class."
        )
        raise ValueError(msg)
    return loss_B * class_weight_C.to(loss_B)[target]


def class_probabilities(logits_BC: Tensor) -> Tensor:
    """(B, C) float32 probabilities of the classes, summing to 1."""
    return logits_BC.float().softmax(dim=-1)


def label_loss(
    logits_BC: Tensor, target_BC: Tensor, *, positive_weight_C: Tensor | None = None
) -> Tensor:
    """Mean binary cross entropy over the labels that a bag has, in float32.

    Args:
        logits_BC: (B, C) logits, any floating dtype.
        target_BC: (B, C) 0 or 1, NaN where the label is missing.
        positive_weight_C: (C,) weight of positives of each label, > 0; None for 1.

    Returns:
        (B,) float32, 0 or more; 0 with no gradient for a bag without labels.

    Raises:
        ValueError: If a shape does not fit, a logit is not finite, or a target is not 0, 1 or NaN.

    Source: Xu et al. 2024, Prov-GigaPath, Nature 630 (18 biomarkers); its code has no missing ones.
    """
    need_shapes("label_loss", logits_BC, target_BC, each=True)
    need_finite("label_loss", "logits", logits_BC)
    is_known_BC = ~target_BC.isnan()
    known_BC = need_whole_numbers(
        "label_loss", torch.where(is_known_BC, target_BC, 0), n_classes=2
    ).float()
    logit_BC = logits_BC.float()
    weight = 1.0 if positive_weight_C is None else positive_weight_C.to(logit_BC)
    positive_BC = -functional.logsigmoid(logit_BC) * weight
    loss_BC = known_BC * positive_BC - (1 - known_BC) * functional.logsigmoid(-logit_BC)
    return (loss_BC * is_known_BC).sum(dim=1) / is_known_BC.sum(dim=1).clamp(min=1)


def label_probabilities(logits_BC: Tensor) -> Tensor:
    """(B, C) float32 probability of each label."""
    return logits_BC.float().sigmoid()
