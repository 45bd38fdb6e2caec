"""Sequences that one kernel call attends within: where their tokens are, and where results go.

Shape suffixes: T tokens of all bags, H heads, E width of a head; a sequence is one segment as one
head sees it: G x h sequences of N tokens in a call, M tokens of all of them, padding left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Heads = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values of a kernel call, (G, h, N, E), or gradients by them."""


@dataclass(frozen=True, kw_only=True)
class GatheredGroup:
    """Sequences of any tokens, gathered and put back by index; h is 1.

    Attributes:
        row_M: (M,) int64 rows of the (T * H, E) outputs, each at most once in a branch.
        query_GN: (G, N) int64 rows of the (T * 3 * H, E) queries, keys and values; the key of a row
            lies H rows after it, the value 2 H. Padding repeats a token of its sequence.
        place_M: (M,) int64 places of ``row_M`` in the flattened (G, N); None if nothing is padded.
        bias_GN: (G, N) float32, 0 on tokens and -inf on padding; None if nothing is padded.
        zeros: (G, 1, 1) float32, zero keys that take part besides; None if none do.
    """

    row_M: Tensor
    query_GN: Tensor
    place_M: Tensor | None
    bias_GN: Tensor | None
    zeros: Tensor | None

    def heads(self, qkv_T3HE: Tensor) -> Heads:
        """What a kernel call takes."""
        n_heads, width = qkv_T3HE.shape[2:]
        qkv_FE = qkv_T3HE.view(-1, width)
        query, key, value = (
            qkv_FE[part * n_heads :]
            .index_select(0, self.query_GN.flatten())
            .view(len(self.query_GN), 1, -1, width)
            for part in range(3)
        )
        return query, key, value

    def put_sums(self, sum_TH: Tensor, sum_GhN: Tensor) -> None:
        """Write log-sum-exps of the sequences to their tokens and heads."""
        sum_TH.view(-1).index_copy_(0, self.row_M, self._tokens(sum_GhN))

    def add(self, out_THE: Tensor, weight_TH: Tensor, own_GhNE: Tensor) -> None:
        """Add the weighted output of the sequences to their tokens and heads."""
        weight_M1 = weight_TH.view(-1, 1).index_select(0, self.row_M)
        weighted_ME = self._tokens(own_GhNE) * weight_M1.to(own_GhNE.dtype)
        out_THE.view(-1, out_THE.shape[-1]).index_add_(0, self.row_M, weighted_ME)

    def weighted(self, grad_THE: Tensor, weight_TH: Tensor) -> Tensor:
        """The gradient of the sequences' output, (G, h, N, E), 0 on padding."""
        weight_M1 = weight_TH.view(-1, 1).index_select(0, self.row_M)
        grad_ME = grad_THE.flatten(0, 1).index_select(0, self.row_M)
        grad_ME = grad_ME * weight_M1.to(grad_ME.dtype)
        if self.place_M is not None:
            padded = grad_ME.new_zeros(self.query_GN.numel(), grad_ME.shape[1])
            grad_ME = padded.index_copy_(0, self.place_M, grad_ME)
        return grad_ME.view(len(self.query_GN), 1, -1, grad_ME.shape[1])

    def add_gradients(self, grad_T3HE: Tensor, grads: Heads) -> None:
        """Add the gradients by queries, keys and values to their tokens and heads."""
        row_M = self._tokens(self.query_GN[:, None])
        grad_FE = grad_T3HE.view(-1, grad_T3HE.shape[-1])
        for part, grad in enumerate(grads):
            own_ME = self._tokens(grad).to(grad_FE.dtype)
            grad_FE[part * grad_T3HE.shape[2] :].index_add_(0, row_M, own_ME)

    def sequences_of(self, token: int, n_heads: int) -> Iterator[tuple[Tensor, int, float]]:
        """Tokens, head and number of zero keys of each sequence that holds a token."""
        token_GN = self.query_GN // (3 * n_heads)
        for g in (token_GN == token).any(dim=1).nonzero().flatten().tolist():
            is_token_N = slice(None) if self.bias_GN is None else self.bias_GN[g] == 0
            n_zeros = 0.0 if self.zeros is None else float(self.zeros[g])
            yield token_GN[g, is_token_N], int(self.query_GN[g, 0]) % n_heads, n_zeros

    def _tokens(self, values_GhNX: Tensor) -> Tensor:
        flat = values_GhNX.flatten(0, 2)
        return flat if self.place_M is None else flat.index_select(0, self.place_M)


@dataclass(frozen=True, kw_only=True)
class SegmentRun:
    """Segments of one length that follow each other, all their tokens seen by all heads: no copy.

    Attributes:
        first: First token.
        n_segments: Segments G.
        n_tokens: Tokens of a segment N.
        zeros: (1, 1, 1) float32, zero keys that take part besides; None if none do.
    """

    first: int
    n_segments: int
    n_tokens: int
    zeros: Tensor | None
    bias_GN: None = None

    def heads(self, qkv_T3HE: Tensor) -> Heads:
        """What a kernel call takes; views of the input."""
        query, key, value = (self._segments(part) for part in qkv_T3HE.unbind(1))
        return query, key, value

    def put_sums(self, sum_TH: Tensor, sum_GhN: Tensor) -> None:
        """Write log-sum-exps of the sequences to their tokens and heads."""
        self._segments(sum_TH).copy_(sum_GhN)

    def add(self, out_THE: Tensor, weight_TH: Tensor, own_GhNE: Tensor) -> None:
        """Add the weighted output of the sequences to their tokens and heads."""
        weight_GhN1 = self._segments(weight_TH)[..., None].to(own_GhNE.dtype)
        self._segments(out_THE).addcmul_(own_GhNE, weight_GhN1)

    def weighted(self, grad_THE: Tensor, weight_TH: Tensor) -> Tensor:
        """The gradient of the sequences' output, (G, h, N, E)."""
        weight_GhN1 = self._segments(weight_TH)[..., None].to(grad_THE.dtype)
        return self._segments(grad_THE) * weight_GhN1

    def add_gradients(self, grad_T3HE: Tensor, grads: Heads) -> None:
        """Add the gradients by queries, keys and values to their tokens and heads."""
        for part, grad in zip(grad_T3HE.unbind(1), grads, strict=True):
            self._segments(part).add_(grad)

    def sequences_of(self, token: int, n_heads: int) -> Iterator[tuple[Tensor, int, float]]:
        """Tokens, head and number of zero keys of each sequence that holds a token."""
        segment, _ = divmod(token - self.first, self.n_tokens)
        if 0 <= segment < self.n_segments:
            start = self.first + segment * self.n_tokens
            token_N = torch.arange(start, start + self.n_tokens)
            n_zeros = 0.0 if self.zeros is None else float(self.zeros)
            yield from ((token_N, head, n_zeros) for head in range(n_heads))

    def _segments(self, values_THX: Tensor) -> Tensor:
        """(T, H, ...) as (G, H, N, ...), a view."""
        own = values_THX[self.first : self.first + self.n_segments * self.n_tokens]
        return own.view(self.n_segments, self.n_tokens, *own.shape[1:]).transpose(1, 2)


Group = GatheredGroup | SegmentRun


def gathered_group(
    first_G: Tensor,
    head_G: Tensor,
    count_G: Tensor,
    zeros_G: Tensor | None,
    *,
    dilation: int,
    n_heads: int,
    device: torch.device,
) -> GatheredGroup:
    """Sequences as indices, padded to the longest.

    Args:
        first_G: (G,) int64 first token of each sequence.
        head_G: (G,) int64 its head.
        count_G: (G,) int64 its tokens, at least 1.
        zeros_G: (G,) int64 zero keys that take part besides; None where they are masked.
        dilation: Step from token to token.
        n_heads: Heads H.
        device: Where the tokens are.
    """
    step_N = torch.arange(int(count_G.max()))
    is_token_GN = step_N < count_G[:, None]
    token_GN = first_G[:, None] + dilation * step_N.where(is_token_GN, 0)
    row_GN = token_GN * n_heads + head_G[:, None]
    query_GN = token_GN * 3 * n_heads + head_G[:, None]
    place_M, bias_GN, zeros = None, None, None
    if not is_token_GN.all():
        place_M = is_token_GN.flatten().nonzero().flatten().to(device)
        bias_GN = torch.zeros(is_token_GN.shape).masked_fill(~is_token_GN, -torch.inf).to(device)
    if zeros_G is not None and zeros_G.any():
        zeros = zeros_G[:, None, None].float().to(device)
    return GatheredGroup(
        row_M=row_GN[is_token_GN].to(device),
        query_GN=query_GN.to(device),
        place_M=place_M,
        bias_GN=bias_GN,
        zeros=zeros,
    )
