"""The last layers of a slide model: plain, for ordered grades, and for CLAM's branches.

Shape suffixes: B bags, W width, K thresholds, A branches, C outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Head = Literal["linear", "ordered"]
SMALLEST_GAP = 1e-4


class OrderedHead(nn.Module):
    """One score and falling thresholds: logits of "the grade is above k".

        z_k = w . x + b_k,   b_0 > b_1 > ... by construction

    At the start all grades are alike likely for a score of 0.

    Args:
        width: Width W of the input.
        n_outputs: Thresholds K, one fewer than grades.

    Source: Cao et al. 2020, CORAL, arXiv:1901.07884; there b_k fall only at the optimum.
    """

    def __init__(self, *, width: int, n_outputs: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1, bias=False)
        odds = [(n_outputs - k) / (k + 1) for k in range(n_outputs)]
        gaps = [math.log(high / low) - SMALLEST_GAP for high, low in pairwise(odds)]
        self.first = nn.Parameter(torch.tensor([math.log(odds[0])]))
        self.gap = nn.Parameter(torch.tensor([math.log(math.expm1(gap)) for gap in gaps]))

    def thresholds(self) -> Tensor:
        """(K,) falling."""
        gap_K = functional.softplus(self.gap) + SMALLEST_GAP
        return torch.cat([self.first, self.first - gap_K.cumsum(dim=0)])

    def forward(self, embedding_BW: Tensor) -> Tensor:
        """(B, W) -> (B, K), falling along K."""
        logits_BK: Tensor = self.score(embedding_BW) + self.thresholds()
        return logits_BK


class BranchHead(nn.Module):
    """Each class scores the vector of its own attention branch.

    Args:
        width: Width W of a branch.
        n_outputs: Outputs C: as many as branches, or 1 where there are two (the second's score
            less the first's, whose sigmoid is the softmax of both).

    Source: Lu et al. 2021, CLAM, arXiv:2004.09666, methods.
    """

    def __init__(self, *, width: int, n_outputs: int) -> None:
        super().__init__()
        self.is_binary = n_outputs == 1
        layer = nn.Linear(width, max(2, n_outputs))
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, embedding_BAW: Tensor) -> Tensor:
        """(B, A, W) -> (B, C)."""
        score_BA = torch.einsum("baw,aw->ba", embedding_BAW, self.weight) + self.bias
        return score_BA[:, 1:] - score_BA[:, :1] if self.is_binary else score_BA


def slide_head(
    width: int, n_outputs: int, *, kind: Head, hidden: Sequence[int], is_branched: bool
) -> nn.Module:
    """A head, freshly drawn.

    Args:
        width: Width W of the input.
        n_outputs: Outputs C.
        kind: ``linear``, or ``ordered`` for falling thresholds.
        hidden: Widths of layers with ReLU before the last one.
        is_branched: Whether the input has one vector a branch.

    Raises:
        ValueError: If a size is below 1, the kind is unknown, or branches meet a head of another
            kind.
    """
    if min(n_outputs, *hidden, 1) < 1 or kind not in {"linear", "ordered"}:
        msg = (
            "slide_head: needs n_outputs and hidden widths of 1 or more and a kind 'linear' or "
            f"'ordered'; got n_outputs={n_outputs}, hidden={list(hidden)}, kind={kind!r}. "
            "Take the outputs of the task."
        )
        raise ValueError(msg)
    if is_branched:
        if hidden or kind != "linear":
            msg = (
                "slide_head: clam_mb needs a plain linear head, one row a branch; got "
                f"hidden={list(hidden)}, kind={kind!r}. Leave both at their defaults, or take "
                "clam_sb."
            )
            raise ValueError(msg)
        return BranchHead(width=width, n_outputs=n_outputs)
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise([width, *hidden]):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    last = hidden[-1] if hidden else width
    if kind == "ordered":
        layers.append(OrderedHead(width=last, n_outputs=n_outputs))
    else:
        layers.append(nn.Linear(last, n_outputs))
    return nn.Sequential(*layers)
