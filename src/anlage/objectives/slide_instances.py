"""CLAM's instance loss: the most attended tiles are evidence of a class, the least are not.

Shape suffixes: B bags, C classes, K tiles a side.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from anlage.objectives.slide_targets import need_finite, need_whole_numbers

InstanceKind = Literal["svm", "cross_entropy"]


def instance_loss(
    top_BCK2: Tensor,
    bottom_BCK2: Tensor,
    target_B: Tensor,
    *,
    is_tile_BK: Tensor,
    kind: InstanceKind = "svm",
    out_of_class: bool = True,
) -> Tensor:
    """Loss of CLAM's instance classifiers, in float32.

    The classifier of a bag's class should call the most attended tiles of that class and the least
    attended ones not. Where classes exclude each other, the classifiers of the other classes
    should not call their most attended tiles so (``out_of_class``). A loss is a mean over tiles,
    then over the classes that take part.

    Args:
        top_BCK2: (B, C, K, 2) logits (not of the class, of the class) of the K most attended tiles.
        bottom_BCK2: (B, C, K, 2) of the K least attended.
        target_B: (B,) class of each bag, 0 to C - 1.
        is_tile_BK: (B, K) bool, False where a bag has too few tiles.
        kind: Smooth top-1 SVM, or cross entropy.
        out_of_class: Whether other classes take part: subtypes, of which a slide has one.

    Returns:
        (B,) float32, 0 or more; 0 with no gradient for a bag of one tile.

    Raises:
        ValueError: If a shape does not fit, a logit is not finite, a target is no class, or
            ``kind`` is unknown.

    Source: Lu et al. 2021, CLAM, arXiv:2004.09666, methods (instance-level clustering); Berrada et
        al. 2018, arXiv:1802.07595, for the SVM with temperature and margin 1.
    """
    _need_instances(top_BCK2, bottom_BCK2, target_B, is_tile_BK, kind=kind)
    need_finite("instance_loss", "logits", top_BCK2)
    need_finite("instance_loss", "logits", bottom_BCK2)
    n_classes = top_BCK2.shape[1]
    class_B = need_whole_numbers("instance_loss", target_B, n_classes=n_classes).long()
    tiles_B1 = is_tile_BK.sum(dim=1, keepdim=True).clamp(min=1)

    def mean_over_tiles(logits_BCK2: Tensor, *, is_of_class: bool) -> Tensor:
        surprise_BCK = _surprise(logits_BCK2.float(), is_of_class=is_of_class, kind=kind)
        return torch.where(is_tile_BK[:, None], surprise_BCK, 0).sum(dim=2) / tiles_B1

    in_BC = mean_over_tiles(top_BCK2, is_of_class=True)
    in_BC = (in_BC + mean_over_tiles(bottom_BCK2, is_of_class=False)) / 2
    is_class_BC = functional.one_hot(class_B, n_classes).bool()
    if not out_of_class:
        return torch.where(is_class_BC, in_BC, 0).sum(dim=1)
    out_BC = mean_over_tiles(top_BCK2, is_of_class=False)
    return torch.where(is_class_BC, in_BC, out_BC).mean(dim=1)


def _surprise(logits_BCK2: Tensor, *, is_of_class: bool, kind: InstanceKind) -> Tensor:
    """(B, C, K) loss of two logits where the truth is known."""
    right, wrong = (1, 0) if is_of_class else (0, 1)
    excess_BCK = logits_BCK2[..., wrong] - logits_BCK2[..., right]
    margin = 1.0 if kind == "svm" else 0.0
    return functional.softplus(excess_BCK + margin)


def _need_instances(
    top_BCK2: Tensor, bottom_BCK2: Tensor, target_B: Tensor, is_tile_BK: Tensor, *, kind: str
) -> None:
    shape = tuple(top_BCK2.shape)
    fits = len(shape) == 4 and shape[3] == 2 and min(shape) >= 1
    others = (tuple(bottom_BCK2.shape), tuple(target_B.shape), tuple(is_tile_BK.shape))
    if not fits or others != (shape, shape[:1], (shape[0], shape[2])):
        msg = (
            "instance_loss: needs two (bags, classes, tiles, 2) tensors, a target a bag and a "
            f"(bags, tiles) mask; got shapes {shape} and {others}. "
            "Take them from one pass of a CLAM model."
        )
        raise ValueError(msg)
    if kind not in {"svm", "cross_entropy"}:
        msg = f"instance_loss: needs kind 'svm' or 'cross_entropy'; got {kind!r}. Choose one."
        raise ValueError(msg)
