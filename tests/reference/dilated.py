"""Dilated attention spelt out: every branch, head and token by itself, over the tokens it sees."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def asker(token: int, length: int, segment: int, dilation: int, pad: str) -> tuple[int, int | None]:
    """The segment from which a token has its output, and the token whose query attended there.

    torchscale fills every segment to a multiple of the dilation, and lays out what comes of them
    with the filling still in: a token has the output of another, or of a query of zeros (None).
    """
    if pad == "masked":
        return token // segment, token
    place, offset = divmod(token, math.ceil(segment / dilation) * dilation)
    return place, place * segment + offset if offset < segment else None


def dense_weights(
    query: Tensor,
    key: Tensor,
    *,
    branches: list[tuple[int, int]],
    rule: str,
    pad: str,
) -> tuple[Tensor, Tensor]:
    """Of one bag: weights of each branch, (B, H, L, L), and of the branches, (B, H, L, 1)."""
    length, n_heads, _ = query.shape
    rows = [
        row_of(query, key, branch, head, token, rule=rule, pad=pad)
        for branch in branches
        for head in range(n_heads)
        for token in range(length)
    ]
    shape = len(branches), n_heads, length
    shares = torch.stack([share for share, _ in rows]).view(*shape, length)
    sums = torch.stack([total for _, total in rows]).view(*shape, 1)
    return shares, sums.detach().softmax(dim=0)


def row_of(
    query: Tensor,
    key: Tensor,
    branch: tuple[int, int],
    head: int,
    token: int,
    *,
    rule: str,
    pad: str,
) -> tuple[Tensor, Tensor]:
    """What one token's output as one head takes of each value, (L,), and its log-sum-exp."""
    (length, n_heads, width), dilation = query.shape, branch[1]
    segment = min(branch[0], length)
    n_places = math.ceil(segment / dilation)
    phase = head % dilation if rule == "paper" else head // math.ceil(n_heads / dilation)
    own, asked = asker(token, length, segment, dilation, pad)
    seen = list(range(own * segment + phase, min((own + 1) * segment, length), dilation))
    none, nothing = torch.zeros(length, dtype=query.dtype), query.new_tensor(-1e8)
    if asked is None:
        if n_places == 1 or not is_kept(token, segment, dilation, phase):
            return none, nothing
    elif asked not in seen:
        return none, nothing
    query_E = torch.zeros_like(query[0, 0]) if asked is None else query[asked, head]
    logits = key[seen, head] @ query_E / math.sqrt(width)
    n_zeros = n_places - len(seen) if pad == "zero" else 0
    total = logits.exp().sum() + n_zeros
    return none.index_put((torch.tensor(seen),), logits.exp() / total), total.log()


def is_kept(token: int, segment: int, dilation: int, phase: int) -> bool:
    return token % (math.ceil(segment / dilation) * dilation) % dilation == phase


def dense_attention(
    query: Tensor, key: Tensor, value: Tensor, lengths: list[int], **settings: object
) -> Tensor:
    """(T, H, E) of packed bags, one bag after the other; branch weights carry no gradient."""
    bags = zip(*(torch.split(part, lengths) for part in (query, key, value)), strict=True)
    outs = []
    for query_LHE, key_LHE, value_LHE in bags:
        shares, weights = dense_weights(query_LHE, key_LHE, **settings)
        outs.append(torch.einsum("bhij,jhe->ihe", weights * shares, value_LHE))
    return torch.cat(outs)
