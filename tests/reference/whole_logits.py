"""The objectives on whole matrices of logits: every logit is a token, the prototypes are axes.

With the identity as prototypes a token's scores are the token itself, so that the pieces of
``anlage.objectives.prototypes`` can be asked about any logits and any targets.
"""

from __future__ import annotations

import torch
from torch import Tensor

from anlage.objectives import dino, ibot
from anlage.objectives.centering import center_bias
from anlage.objectives.prototypes import PrototypeScores, PrototypeTargets
from anlage.objectives.sinkhorn import sinkhorn_bias


def scores_of(logits_GBP: Tensor, *, temperature: float = 1.0, memory_mb: float = 512.0):
    axes = torch.eye(logits_GBP.shape[-1])
    return PrototypeScores(logits_GBP, axes, temperature=temperature, memory_mb=memory_mb)


def targets_of(probability_GBP: Tensor, *, memory_mb: float = 512.0) -> PrototypeTargets:
    """Targets that are just these distributions."""
    scores = scores_of(probability_GBP.detach().float().log().clamp(min=-1e4), memory_mb=memory_mb)
    return PrototypeTargets(scores, torch.zeros(probability_GBP.shape[-1]))


def dino_loss(student_VBP, targets_GBP, *, student_temperature=0.1, reduction="mean", **rest):
    loss, per_tile = dino.dino_loss(
        student_VBP,
        torch.eye(student_VBP.shape[-1]),
        targets_of(targets_GBP, **rest),
        student_temperature=student_temperature,
    )
    return loss if reduction == "mean" else per_tile


def ibot_loss(student_MP, targets_MP, *, weight_M, n_images, student_temperature=0.1, **rest):
    loss, _ = ibot.ibot_loss(
        student_MP,
        torch.eye(student_MP.shape[-1]),
        targets_of(targets_MP[None], **rest),
        weight_M=weight_M,
        n_images=n_images,
        student_temperature=student_temperature,
    )
    return loss


def sinkhorn_targets(logits_BP, *, temperature, n_iterations=3, memory_mb=512.0) -> Tensor:
    scores = scores_of(logits_BP[None], temperature=temperature, memory_mb=memory_mb)
    bias = sinkhorn_bias(scores, n_iterations=n_iterations)
    return PrototypeTargets(scores, bias).of(slice(None))[0]


def centered_targets(logits_BP, center_P, *, temperature) -> Tensor:
    scores = scores_of(logits_BP[None], temperature=temperature)
    bias = center_bias(center_P, temperature=temperature)
    return PrototypeTargets(scores, bias).of(slice(None))[0]
