"""Dilated attention of LongNet over packed bags: its branches, and their merge.

Shape suffixes: T tokens of all bags, H heads, E width of a head, S segments, G sequences of one
kernel call (one segment as one head sees it), N tokens of the longest of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log2
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Pad = Literal["zero", "masked"]
HeadPhase = Literal["torchscale", "paper"]

UNCOVERED = -1e8
"""Log-sum-exp of a token that a branch leaves out."""


class Branch(NamedTuple):
    """One pattern of dilated attention.

    Attributes:
        segment: Tokens of a segment, within which attention stays.
        dilation: Step between the tokens that one head sees.
    """

    segment: int
    dilation: int


class SequenceGroup(NamedTuple):
    """Sequences that one kernel call attends within.

    Attributes:
        row_GN: (G, N) int64 rows of the (T * H, E) matrix of tokens and heads.
        valid_GN: (G, N) bool, False on padding; None where all are as long.
        zeros_G1: (G, 1) zero keys that take part besides; None where none do.
    """

    row_GN: Tensor
    valid_GN: Tensor | None
    zeros_G1: Tensor | None


@dataclass(frozen=True, kw_only=True)
class DilatedPlan:
    """Which tokens attend to which, for one batch; built once, used by every layer.

    Attributes:
        lengths: Tokens of each bag.
        n_heads: Heads H.
        branches: Groups of sequences, branch by branch.
    """

    lengths: tuple[int, ...]
    n_heads: int
    branches: tuple[tuple[SequenceGroup, ...], ...]


def gigapath_branches(max_slide_px: int = 262144, tile_px: int = 256) -> tuple[Branch, ...]:
    """Branches of Prov-GigaPath's slide encoder.

    Segments grow evenly in log from 1,024 tokens to the whole number of doublings that a square
    slide of ``max_slide_px`` holds.

    Args:
        max_slide_px: Edge of the largest slide, in pixels at 0.5 mpp.
        tile_px: Edge of a tile, in the same pixels.

    Returns:
        Five branches, dilations 1, 2, 4, 8, 16.

    Source: ``get_optimal_segment_length`` of prov-gigapath's ``slide_encoder.py``.
    """
    top = int(log2((max_slide_px // tile_px) ** 2))
    exponents = [10 + (top - 10) * step / 4 for step in range(5)]
    return tuple(Branch(int(2**power), 2**step) for step, power in enumerate(exponents))


def head_phases(n_heads: int, dilation: int, *, rule: HeadPhase) -> Tensor:
    """First token that each head sees in a segment.

    Args:
        n_heads: Heads H.
        dilation: Step r between the tokens of a head.
        rule: ``torchscale`` gives neighbouring heads one phase, h // ceil(H / r); ``paper`` gives
            them different ones, h % r.

    Returns:
        (H,) int64 in [0, dilation).
    """
    head_H = torch.arange(n_heads)
    if rule == "paper":
        return head_H % dilation
    return head_H // -(-n_heads // dilation)


def plan_dilated(
    lengths: Sequence[int],
    *,
    branches: Sequence[Branch],
    n_heads: int,
    head_phase: HeadPhase,
    pad: Pad,
    device: torch.device | str,
) -> DilatedPlan:
    """Cut every bag into segments by its own length, and list what each head sees.

    Args:
        lengths: Tokens of each bag, each at least 1.
        branches: Segment and dilation of each branch; a segment longer than a bag is the bag.
        n_heads: Heads H.
        head_phase: Which token of a segment a head begins at.
        pad: ``masked`` attends to tokens alone; ``zero`` also to the zeros that torchscale fills
            segments with, as Prov-GigaPath's weights expect.
        device: Where the tokens are.

    Returns:
        The plan of this batch.

    Raises:
        ValueError: If a bag is empty, or a segment, dilation or head count is below 1.
    """
    _check(lengths, branches, n_heads)
    groups = tuple(
        tuple(
            _groups(
                lengths,
                branch,
                head_phases(n_heads, branch.dilation, rule=head_phase),
                zeros=pad == "zero",
                device=device,
            )
        )
        for branch in branches
    )
    return DilatedPlan(lengths=tuple(lengths), n_heads=n_heads, branches=groups)


def dilated_attention(
    query_THE: Tensor, key_THE: Tensor, value_THE: Tensor, plan: DilatedPlan
) -> Tensor:
    """Attention within every branch, merged by how much each branch saw.

        out = sum_b softmax_b(lse_b) * out_b, the weights without gradient

    Args:
        query_THE: (T, H, E) queries of all bags.
        key_THE: (T, H, E) keys.
        value_THE: (T, H, E) values.
        plan: Made for these bags.

    Returns:
        (T, H, E); zero for a token that no branch covers.

    Source: Ding et al. 2023, LongNet, arXiv:2307.02486, sections 2.2 and 2.3.
    """
    n_rows = query_THE.shape[0] * query_THE.shape[1]
    query_RE, key_RE, value_RE = (
        part.reshape(n_rows, -1) for part in (query_THE, key_THE, value_THE)
    )
    outs, sums = [], []
    for groups in plan.branches:
        out_RE = torch.zeros_like(query_RE)
        sum_R = torch.full((n_rows,), UNCOVERED, device=out_RE.device, dtype=_exact(out_RE.dtype))
        for group in groups:
            out_GNE, sum_GN = _attend(query_RE, key_RE, value_RE, group)
            taken = slice(None) if group.valid_GN is None else group.valid_GN
            rows = group.row_GN[taken].flatten()
            out_RE = out_RE.index_copy(0, rows, out_GNE[taken].flatten(0, -2))
            sum_R = sum_R.index_copy(0, rows, sum_GN[taken].flatten().detach())
        outs.append(out_RE)
        sums.append(sum_R)
    weight_BR = torch.softmax(torch.stack(sums), dim=0)
    merged = sum(w[:, None].to(o.dtype) * o for w, o in zip(weight_BR, outs, strict=True))
    assert isinstance(merged, Tensor)
    return merged.view_as(query_THE)


def attention_of_token(
    query_THE: Tensor, key_THE: Tensor, plan: DilatedPlan, *, token: int
) -> Tensor:
    """How one token spreads its attention over all others, the branches merged.

    Args:
        query_THE: (T, H, E) queries.
        key_THE: (T, H, E) keys.
        plan: Made for these bags.
        token: Row of the token whose attention is asked for.

    Returns:
        (H, T), of the queries' dtype (float32 from half precision), not negative; a row sums to 1,
        with ``pad="zero"`` to at most 1, and is zero where no branch covers the token.
    """
    n_tokens, n_heads, _ = query_THE.shape
    dtype = _exact(query_THE.dtype)
    shares, sums = [], []
    for groups in plan.branches:
        share_HT = torch.zeros(n_heads, n_tokens, dtype=dtype, device=query_THE.device)
        sum_H = torch.full((n_heads,), UNCOVERED, dtype=dtype, device=query_THE.device)
        for group in groups:
            is_token_GN = group.row_GN // n_heads == token
            if group.valid_GN is not None:
                is_token_GN &= group.valid_GN
            for g, n in is_token_GN.nonzero().tolist():
                own = slice(None) if group.valid_GN is None else group.valid_GN[g]
                row_N = group.row_GN[g][own]
                head = int(group.row_GN[g, n]) % n_heads
                key_NE = key_THE[row_N // n_heads, head].to(dtype)
                logit_N = key_NE @ query_THE[token, head].to(dtype) * key_NE.shape[1] ** -0.5
                total = torch.logsumexp(logit_N, 0)
                if group.zeros_G1 is not None:
                    total = torch.logaddexp(total, group.zeros_G1[g, 0].to(dtype).log())
                share_HT[head, row_N // n_heads] = torch.exp(logit_N - total)
                sum_H[head] = total
        shares.append(share_HT)
        sums.append(sum_H)
    weight_BH = torch.softmax(torch.stack(sums), dim=0)
    return (weight_BH[:, :, None] * torch.stack(shares)).sum(0)


def _attend(
    query_RE: Tensor, key_RE: Tensor, value_RE: Tensor, group: SequenceGroup
) -> tuple[Tensor, Tensor]:
    query, key, value = (part[group.row_GN] for part in (query_RE, key_RE, value_RE))
    logit_GNN = (query @ key.transpose(1, 2)).to(_exact(query.dtype)) * query.shape[-1] ** -0.5
    if group.valid_GN is not None:
        logit_GNN = logit_GNN.masked_fill(~group.valid_GN[:, None], -torch.inf)
    sum_GN = torch.logsumexp(logit_GNN, dim=-1)
    if group.zeros_G1 is not None:
        sum_GN = torch.logaddexp(sum_GN, group.zeros_G1.to(sum_GN.dtype).log())
    share_GNN = torch.exp(logit_GNN - sum_GN[..., None]).to(value.dtype)
    return share_GNN @ value, sum_GN


def _groups(
    lengths: Sequence[int],
    branch: Branch,
    phase_H: Tensor,
    *,
    zeros: bool,
    device: torch.device | str,
) -> list[SequenceGroup]:
    dilation, n_heads = branch.dilation, len(phase_H)
    start_S, end_S, full_S = _segments(lengths, branch.segment)
    first_SH = start_S[:, None] + phase_H
    count_SH = (-((first_SH - end_S[:, None]) // dilation)).clamp(min=0)
    zeros_SH = -(-full_S[:, None] // dilation) - count_SH
    head_SH = torch.arange(n_heads).expand_as(first_SH)
    groups = []
    for count in sorted(set(count_SH.flatten().tolist())):
        if not count:
            continue
        own_SH = count_SH == count
        token_GN = first_SH[own_SH][:, None] + dilation * torch.arange(count)
        row_GN = token_GN * n_heads + head_SH[own_SH][:, None]
        zeros_G1 = zeros_SH[own_SH][:, None].to(device) if zeros else None
        groups.append(SequenceGroup(row_GN.to(device), None, zeros_G1))
    return groups


def _segments(lengths: Sequence[int], segment: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where the segments of all bags start and end, and how long a full one of their bag is."""
    starts, ends, full, first = [], [], [], 0
    for length in lengths:
        own = min(segment, length)
        start = torch.arange(0, length, own)
        starts.append(first + start)
        ends.append(first + (start + own).clamp(max=length))
        full.append(torch.full_like(start, own))
        first += length
    return torch.cat(starts), torch.cat(ends), torch.cat(full)


def _check(lengths: Sequence[int], branches: Sequence[Branch], n_heads: int) -> None:
    if not lengths or min(lengths) < 1:
        msg = (
            f"plan_dilated: needs bags of at least one token; got lengths {list(lengths)}. "
            "Leave empty bags out."
        )
        raise ValueError(msg)
    if n_heads < 1 or not branches or any(min(branch) < 1 for branch in branches):
        msg = (
            "plan_dilated: needs n_heads, segments and dilations of at least 1; got "
            f"n_heads={n_heads}, branches {[tuple(branch) for branch in branches]}. "
            "Take those of gigapath_branches()."
        )
        raise ValueError(msg)


def _exact(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
