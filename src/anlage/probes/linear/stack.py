"""Linear heads of one shape that learn side by side, each from rows of its own."""

# Shape suffixes: M train rows, V validation rows, B rows of a batch, R heads, C outputs of a head
# (its classes, or 1 for a sigmoid), D embedding width, P numbers of all heads together.

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

BLOCK_ROWS = 8192


class HeadStack:
    """R linear heads, and the gradient of each on a batch of its own.

    The gradient of the mean cross-entropy is written out, (softmax - one-hot) times the rows, so
    that nothing is recorded for a backward pass and all large arrays are used again. Everything
    is float32; products accumulate in float32.

    Attributes:
        weight_RCD: (R, C, D) weights, a view of ``parameter_P``.
        bias_RC: (R, C) biases, a view of ``parameter_P``.
        parameter_P: (R * C * D + R * C,) every number that is trained.
        gradient_P: (P,) gradient of each.
    """

    def __init__(self, train_MD: Tensor, *, n_outputs: int, seeds: Sequence[int]) -> None:
        n_heads, width = len(seeds), train_MD.shape[1]
        self._train_MD = train_MD
        self._shape = (n_heads, n_outputs, width)
        self.parameter_P = train_MD.new_empty(n_heads * n_outputs * (width + 1))
        self.gradient_P = torch.zeros_like(self.parameter_P)
        self.weight_RCD, self.bias_RC = self._views(self.parameter_P)
        self._weight_gradient_RCD, self._bias_gradient_RC = self._views(self.gradient_P)
        self._buffer = train_MD.new_empty(0, width)
        for head, seed in enumerate(seeds):
            weight_CD, bias_C = first_weights(n_outputs, width, seed=seed)
            self.weight_RCD[head], self.bias_RC[head] = weight_CD, bias_C

    @property
    def n_heads(self) -> int:
        """R."""
        return self._shape[0]

    @property
    def is_sigmoid(self) -> bool:
        """Whether a head has one output, the logit of the second of two classes."""
        return self._shape[1] == 1

    def set_gradient(self, row_RB: Tensor, code_RB: Tensor) -> None:
        """Write the gradient of each head's mean cross-entropy on its batch to ``gradient_P``.

        Args:
            row_RB: (R, B) int64 rows of the train side, one batch a head.
            code_RB: (R, B) int64 classes of these rows.
        """
        n_rows = row_RB.shape[1]
        batch_RBD = self._gather(row_RB)
        logit_RCB = torch.baddbmm(self.bias_RC[..., None], self.weight_RCD, batch_RBD.mT)
        if self.is_sigmoid:
            error_RCB = logit_RCB.sigmoid_().sub_(code_RB[:, None])
        else:
            error_RCB = torch.softmax(logit_RCB, dim=1)
            one = error_RCB.new_full((1, 1, 1), -1.0).expand(self.n_heads, 1, n_rows)
            error_RCB.scatter_add_(1, code_RB[:, None], one)
        error_RCB.mul_(1 / n_rows)
        torch.bmm(error_RCB, batch_RBD, out=self._weight_gradient_RCD)
        torch.sum(error_RCB, dim=2, out=self._bias_gradient_RC)

    def logits(self, row_VD: Tensor) -> Iterator[Tensor]:
        """Logits of other rows by every head, (R, C, at most 8,192), block after block."""
        for block in torch.split(row_VD, BLOCK_ROWS):
            rows = block.mT.expand(self.n_heads, -1, -1)
            yield torch.baddbmm(self.bias_RC[..., None], self.weight_RCD, rows)

    def _gather(self, row_RB: Tensor) -> Tensor:
        n_heads, n_rows = row_RB.shape
        if len(self._buffer) < row_RB.numel():
            self._buffer = self._train_MD.new_empty(row_RB.numel(), self._shape[2])
        batch = self._buffer[: row_RB.numel()]
        torch.index_select(self._train_MD, 0, row_RB.flatten(), out=batch)
        return batch.view(n_heads, n_rows, -1)

    def _views(self, flat_P: Tensor) -> tuple[Tensor, Tensor]:
        n_heads, n_outputs, width = self._shape
        weight, bias = torch.split(flat_P, [n_heads * n_outputs * width, n_heads * n_outputs])
        return weight.view(self._shape), bias.view(n_heads, n_outputs)


def first_weights(n_outputs: int, width: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """The weights that ``torch.nn.Linear`` starts from under ``torch.manual_seed(seed)``.

    Uniform within 1 / sqrt(width) on either side of zero, drawn on the CPU without touching
    torch's own generator, so that a seed means the same on every device.

    Returns:
        weight_CD: (C, D) float32.
        bias_C: (C,) float32.
    """
    generator = torch.Generator().manual_seed(seed)
    bound = width**-0.5
    weight_CD, bias_C = torch.empty(n_outputs, width), torch.empty(n_outputs)
    weight_CD.uniform_(-bound, bound, generator=generator)
    bias_C.uniform_(-bound, bound, generator=generator)
    return weight_CD, bias_C


def shuffled_epochs(n_rows: int, *, seeds: Sequence[int], device: torch.device) -> Iterator[Tensor]:
    """Every row once an epoch, in an order of its own for each seed: (R, M) int64, without end."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    while True:
        yield torch.stack([torch.randperm(n_rows, generator=rng) for rng in generators]).to(device)
