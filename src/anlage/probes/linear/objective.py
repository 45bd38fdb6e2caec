"""Penalised multinomial cross-entropy on frozen embeddings: value and gradient in one read."""

# Shape suffixes: M rows, B rows of a block, D embedding width, E = D + 1 (the bias last),
# C classes.

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

BLOCK_VALUES = {"cpu": 2**20, "cuda": 2**25}
LINEAR_FROM = 40.0  # log(1 + exp(x)) is x to float64's last bit from here


@dataclass(frozen=True, kw_only=True, slots=True)
class Penalty:
    """What is added to the cross-entropy; the bias is never part of it.

    Attributes:
        strength: Of the penalty, > 0.
        is_squared: ``strength / 2 * |W|_F^2``; if not, ``strength * |W|_F``.
    """

    strength: float = 1.0
    is_squared: bool = True

    def value(self, weight_CD: Tensor) -> float:
        """The penalty of weights in float64."""
        squares = float(weight_CD.square().sum())
        return self.strength * (squares / 2 if self.is_squared else squares**0.5)

    def curvature(self, weight_CD: Tensor) -> float:
        """The c for which the gradient is ``c * W``; infinite for a norm not squared at zero."""
        if self.is_squared:
            return self.strength
        norm = float(weight_CD.norm())
        return self.strength / norm if norm else float("inf")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SoftmaxObjective:
    """``sum_i w_i * cross_entropy_i + penalty(W)`` over parameters [W, b] of shape (C, D + 1).

    W acts on ``(x - mean) / scale``: a block of rows is centred while it is in the cache and the
    scale goes into the weights, so that no standardised copy of the embeddings is made. A block's
    logits, loss and gradient are computed together, so embeddings are read once per evaluation.
    Logits and products are in the dtype of the embeddings (float32 products in full, see
    ``torch.backends.cuda.matmul.allow_tf32``); a block's gradient is summed in that dtype, and
    sums over blocks, the loss, and the parameters are float64.

    Attributes:
        train_MD: (M, D) float32 or float64; read, never changed nor copied.
        code_M: (M,) int64, class of each row.
        weight_M: (M,) weight of each row's loss, same dtype; the cost is part of it.
        n_classes: C.
        penalty: Of the weights.
        mean_D: (D,) subtracted from rows, same dtype; None for nothing.
        scale_D: (D,) float64 that they are divided by; None for one.
    """

    train_MD: Tensor
    code_M: Tensor
    weight_M: Tensor
    n_classes: int
    penalty: Penalty
    mean_D: Tensor | None = None
    scale_D: Tensor | None = None

    def __call__(self, parameter_CE: Tensor) -> tuple[float, Tensor]:
        """Value and (C, E) float64 gradient; memory of a block, 4 or 128 MiB of rows.

        For a norm that is not squared the penalty's gradient at zero weights is taken as zero.
        """
        dtype, device = self.train_MD.dtype, self.train_MD.device
        weight_CD = parameter_CE[:, :-1]
        scaled = weight_CD if self.scale_D is None else weight_CD / self.scale_D
        used_CD, bias_C1 = scaled.to(dtype), parameter_CE[:, -1:].to(dtype)
        loss = torch.zeros((), dtype=torch.float64, device=device)
        gradient_CE = torch.zeros_like(parameter_CE)
        has_weights = bool(weight_CD.any())
        for start in range(0, len(self.train_MD), self.n_block):
            rows = slice(start, start + self.n_block)
            x_BD = self.block(rows)
            if has_weights:
                logit_CB = torch.addmm(bias_C1, used_CD, x_BD.T)
            else:
                logit_CB = bias_C1.expand(-1, len(x_BD))
            code_1B, weight_B = self.code_M[None, rows], self.weight_M[rows]
            loss_B, excess_CB = _cross_entropy(logit_CB, code_1B)
            loss += (loss_B * weight_B).sum(dtype=torch.float64)
            excess_CB *= weight_B
            gradient_CE[:, :-1] += excess_CB @ x_BD
            gradient_CE[:, -1] += excess_CB.sum(dim=1, dtype=torch.float64)
        if self.scale_D is not None:
            gradient_CE[:, :-1] /= self.scale_D
        gradient_CE -= gradient_CE.mean(dim=0)  # sums to zero over classes but for rounding
        curvature = self.penalty.curvature(weight_CD)
        if curvature < float("inf"):
            gradient_CE[:, :-1] += curvature * weight_CD
        return float(loss) + self.penalty.value(weight_CD), gradient_CE

    @property
    def n_block(self) -> int:
        """Rows of a block."""
        values = BLOCK_VALUES.get(self.train_MD.device.type, BLOCK_VALUES["cpu"])
        return max(256, values // (self.train_MD.shape[1] + self.n_classes))

    def block(self, rows: slice | Tensor) -> Tensor:
        """(B, D) rows, centred but not scaled."""
        x_BD = self.train_MD[rows]
        return x_BD if self.mean_D is None else x_BD - self.mean_D

    def standardised(self, row_B: Tensor) -> Tensor:
        """(B, D) copy of some rows, centred and scaled, as the weights meet them."""
        x_BD = self.block(row_B)
        return x_BD if self.scale_D is None else x_BD / self.scale_D.to(x_BD.dtype)

    def prior(self) -> Tensor:
        """(C, E) float64 best parameters among those of zero weights: the log shares of classes."""
        share_C = torch.zeros(self.n_classes, dtype=torch.float64, device=self.weight_M.device)
        share_C.index_add_(0, self.code_M, self.weight_M.double())
        parameter_CE = share_C.new_zeros(self.n_classes, self.train_MD.shape[1] + 1)
        log_C = share_C.log()
        parameter_CE[:, -1] = log_C - log_C.mean()
        return parameter_CE


def _cross_entropy(logit_CB: Tensor, code_1B: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) loss and (C, B) gradient over logits, exact to rounding where the loss is near zero too.

    From the odds of the other classes, since 1 - p of a class that is all but sure is lost in p.
    """
    odds_CB = logit_CB - logit_CB.gather(0, code_1B)
    odds_CB.scatter_(0, code_1B, -torch.inf)
    loss_B = softplus(odds_CB.logsumexp(dim=0), threshold=LINEAR_FROM)
    odds_CB -= loss_B
    excess_CB = odds_CB.exp_()
    return loss_B, excess_CB.scatter_(0, code_1B, -excess_CB.sum(dim=0, keepdim=True))
