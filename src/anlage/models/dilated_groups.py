"""Sequences that one kernel call attends within: where their tokens are, and where results go.

Shape suffixes: T tokens of all bags, H heads, E width of a head; a sequence is one segment as one
head sees it: G x h sequences of N tokens in a call, M tokens of all of them, padding left out, O
outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Heads = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values of a kernel call, (G, h, N, E), or gradients by them."""


class SequenceOf(NamedTuple):
    """A sequence that gives one token its output as one head.

    Attributes:
        head: The head.
        asked: Token whose query attends; None for a query of zeros.
        token_N: (N,) int64 tokens that are attended to.
        n_zeros: Zero keys that take part besides.
    """

    head: int
    asked: int | None
    token_N: Tensor
    n_zeros: float


@dataclass(frozen=True, kw_only=True)
class GatheredGroup:
    """Sequences of any tokens, gathered and put back by index; h is 1.

    Attributes:
        query_GN: (G, N) int64 rows of the (T * 3 * H, E) queries, keys and values; the key of a row
            lies H rows after it, the value 2 H. Padding repeats a token of its sequence.
        token_M: (M,) int64 places of tokens in the flattened (G, N); None if nothing is padded.
        row_O: (O,) int64 rows of the (T * H, E) outputs, each at most once in a branch.
        place_O: (O,) int64 places in the flattened (G, N) of what goes there; None for all.
        bias_GN: (G, N) float32, 0 on tokens and -inf on padding; None if nothing is masked.
        is_token_GN: (G, N) bool, False on padding that takes part as zeros; None if none does.
        zeros: (G, 1, 1) float32, zero keys that take part besides; None if none do.
    """

    query_GN: Tensor
    token_M: Tensor | None
    row_O: Tensor
    place_O: Tensor | None
    bias_GN: Tensor | None
    is_token_GN: Tensor | None
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
        if self.is_token_GN is not None:
            is_zero = ~self.is_token_GN[:, None, :, None]
            for part in (query, key, value):
                part.masked_fill_(is_zero, 0)
        return query, key, value

    def put_sums(self, sum_TH: Tensor, sum_GhN: Tensor) -> None:
        """Write log-sum-exps of the sequences to their tokens and heads."""
        sum_TH.view(-1).index_copy_(0, self.row_O, _at(self.place_O, sum_GhN))

    def add(self, out_THE: Tensor, weight_TH: Tensor, own_GhNE: Tensor) -> None:
        """Add the weighted output of the sequences to their tokens and heads."""
        weight_O1 = weight_TH.view(-1, 1).index_select(0, self.row_O)
        weighted_OE = _at(self.place_O, own_GhNE) * weight_O1.to(own_GhNE.dtype)
        out_THE.view(-1, out_THE.shape[-1]).index_add_(0, self.row_O, weighted_OE)

    def merge(self, out_THE: Tensor, sum_TH: Tensor, own_GhNE: Tensor, own_sum_GhN: Tensor) -> None:
        """Merge output and log-sum-exps of the sequences with those of branches before."""
        out_RE, sum_R = out_THE.view(-1, out_THE.shape[-1]), sum_TH.view(-1)
        before_O, own_O = sum_R.index_select(0, self.row_O), _at(self.place_O, own_sum_GhN)
        total_O = torch.logaddexp(before_O, own_O)
        merged_OE = out_RE.index_select(0, self.row_O)
        merged_OE.mul_(_share(before_O, total_O, merged_OE))
        merged_OE.addcmul_(_at(self.place_O, own_GhNE), _share(own_O, total_O, merged_OE))
        out_RE.index_copy_(0, self.row_O, merged_OE)
        sum_R.index_copy_(0, self.row_O, total_O)

    def weighted(self, grad_THE: Tensor, weight_TH: Tensor) -> Tensor:
        """The gradient of the sequences' output, (G, h, N, E), 0 on what goes nowhere."""
        weight_O1 = weight_TH.view(-1, 1).index_select(0, self.row_O)
        grad_OE = grad_THE.flatten(0, 1).index_select(0, self.row_O)
        grad_OE = grad_OE * weight_O1.to(grad_OE.dtype)
        if self.place_O is not None:
            everywhere = grad_OE.new_zeros(self.query_GN.numel(), grad_OE.shape[1])
            grad_OE = everywhere.index_copy_(0, self.place_O, grad_OE)
        return grad_OE.view(len(self.query_GN), 1, -1, grad_OE.shape[1])

    def add_gradients(self, grad_T3HE: Tensor, grads: Heads) -> None:
        """Add the gradients by queries, keys and values to their tokens and heads."""
        row_M = _at(self.token_M, self.query_GN[:, None])
        grad_FE = grad_T3HE.view(-1, grad_T3HE.shape[-1])
        for part, grad in enumerate(grads):
            own_ME = _at(self.token_M, grad).to(grad_FE.dtype)
            grad_FE[part * grad_T3HE.shape[2] :].index_add_(0, row_M, own_ME)

    def sequences_of(self, token: int, n_heads: int) -> Iterator[SequenceOf]:
        """The sequences from which a token has its output."""
        found = (self.row_O // n_heads == token).nonzero().flatten()
        place = found if self.place_O is None else self.place_O[found]
        for g, n in (divmod(at, self.query_GN.shape[1]) for at in place.tolist()):
            is_token_N = torch.ones_like(self.query_GN[g], dtype=torch.bool)
            n_zeros = 0.0 if self.zeros is None else float(self.zeros[g])
            if self.bias_GN is not None:
                is_token_N = self.bias_GN[g] == 0
            if self.is_token_GN is not None:
                is_token_N = self.is_token_GN[g]
                n_zeros = float((~is_token_N).sum())
            token_N = self.query_GN[g] // (3 * n_heads)
            head = int(self.query_GN[g, 0]) % n_heads
            asked = int(token_N[n]) if is_token_N[n] else None
            yield SequenceOf(head, asked, token_N[is_token_N], n_zeros)


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

    def merge(self, out_THE: Tensor, sum_TH: Tensor, own_GhNE: Tensor, own_sum_GhN: Tensor) -> None:
        """Merge output and log-sum-exps of the sequences with those of branches before."""
        out_GhNE, before_GhN = self._segments(out_THE), self._segments(sum_TH)
        total_GhN = torch.logaddexp(before_GhN, own_sum_GhN)
        out_GhNE.mul_(_share(before_GhN, total_GhN, out_GhNE))
        out_GhNE.addcmul_(own_GhNE, _share(own_sum_GhN, total_GhN, out_GhNE))
        before_GhN.copy_(total_GhN)

    def weighted(self, grad_THE: Tensor, weight_TH: Tensor) -> Tensor:
        """The gradient of the sequences' output, (G, h, N, E)."""
        weight_GhN1 = self._segments(weight_TH)[..., None].to(grad_THE.dtype)
        return self._segments(grad_THE) * weight_GhN1

    def add_gradients(self, grad_T3HE: Tensor, grads: Heads) -> None:
        """Add the gradients by queries, keys and values to their tokens and heads."""
        for part, grad in zip(grad_T3HE.unbind(1), grads, strict=True):
            self._segments(part).add_(grad)

    def sequences_of(self, token: int, n_heads: int) -> Iterator[SequenceOf]:
        """The sequences from which a token has its output."""
        segment = (token - self.first) // self.n_tokens
        if 0 <= segment < self.n_segments:
            start = self.first + segment * self.n_tokens
            token_N = torch.arange(start, start + self.n_tokens)
            n_zeros = 0.0 if self.zeros is None else float(self.zeros)
            for head in range(n_heads):
                yield SequenceOf(head, token, token_N, n_zeros)

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
    token_M, bias_GN, zeros = None, None, None
    if not is_token_GN.all():
        token_M = is_token_GN.flatten().nonzero().flatten().to(device)
        bias_GN = torch.zeros(is_token_GN.shape).masked_fill(~is_token_GN, -torch.inf).to(device)
    if zeros_G is not None and zeros_G.any():
        zeros = zeros_G[:, None, None].float().to(device)
    return GatheredGroup(
        query_GN=query_GN.to(device),
        token_M=token_M,
        row_O=row_GN[is_token_GN].to(device),
        place_O=token_M,
        bias_GN=bias_GN,
        is_token_GN=None,
        zeros=zeros,
    )


def _at(place: Tensor | None, values_GhNX: Tensor) -> Tensor:
    """What lies at places of the flattened (G, h, N); all for None."""
    flat = values_GhNX.flatten(0, 2)
    return flat if place is None else flat.index_select(0, place)


def _share(part: Tensor, total: Tensor, like: Tensor) -> Tensor:
    return torch.exp(part - total)[..., None].to(like.dtype)
