"""Which tokens attend to which in dilated attention, worked out once for a batch of bags.

Shape suffixes: T tokens of all bags, S segments of all bags, H heads, E width of a head; a
sequence is one segment as one head sees it: G sequences of one kernel call, N tokens of the
longest of them, M tokens of all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log2
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Pad = Literal["zero", "masked"]
HeadPhase = Literal["torchscale", "paper"]

MOST_SEQUENCES = 32_768
"""Of one kernel call; CUDA's launch grids end at 65,535."""

SPARE_PAIRS = {"cpu": 60_000}
"""Pairs of tokens that cost about as much as a kernel call; measured on CPU."""
SPARE_PAIRS_ELSEWHERE = 4_000_000
MASK_COST = 0.1
"""Share by which a mask slows a kernel; measured on CPU."""


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
        row_M: (M,) int64 rows of the (T * H, E) outputs, each at most once in a branch.
        query_GN: (G, N) int64 rows of the (T * 3 * H, E) queries, keys and values; the key of a row
            lies H rows after it, the value 2 H. Padding repeats a token of its sequence.
        place_M: (M,) int64 places of ``row_M`` in the flattened (G, N); None if nothing is padded.
        bias_GN: (G, N) float32, 0 on tokens and -inf on padding; None if nothing is padded.
        zeros_G1: (G, 1) float32, number of zero keys that take part; None if none do.
    """

    row_M: Tensor
    query_GN: Tensor
    place_M: Tensor | None
    bias_GN: Tensor | None
    zeros_G1: Tensor | None

    def tokens_only(self, values_GNX: Tensor) -> Tensor:
        """Of (G, N, ...) those of tokens, (M, ...), padding left out."""
        flat = values_GNX.flatten(0, 1)
        return flat if self.place_M is None else flat.index_select(0, self.place_M)

    def padded(self, values_MX: Tensor) -> Tensor:
        """Undo ``tokens_only``, with zeros as padding."""
        if self.place_M is not None:
            flat = values_MX.new_zeros(self.query_GN.numel(), *values_MX.shape[1:])
            values_MX = flat.index_copy_(0, self.place_M, values_MX)
        return values_MX.view(*self.query_GN.shape, *values_MX.shape[1:])


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


class _Sequences(NamedTuple):
    """Of each sequence: its first token, its head, its tokens, and the zero keys besides."""

    first_G: Tensor
    head_G: Tensor
    count_G: Tensor
    zeros_G: Tensor


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
    device = torch.device(device)
    planned = []
    for branch in branches:
        phase_H = head_phases(n_heads, branch.dilation, rule=head_phase)
        all_sequences = _sequences(lengths, branch, phase_H)
        planned.append(
            tuple(
                _group(own, branch.dilation, n_heads, zeros=pad == "zero", device=device)
                for own in _alike(all_sequences, SPARE_PAIRS.get(device.type))
            )
        )
    return DilatedPlan(lengths=tuple(lengths), n_heads=n_heads, branches=tuple(planned))


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


def _sequences(lengths: Sequence[int], branch: Branch, phase_H: Tensor) -> _Sequences:
    start_S, end_S, full_S = _segments(lengths, branch.segment)
    first_SH = start_S[:, None] + phase_H
    count_SH = _steps(end_S[:, None] - first_SH, branch.dilation).clamp(min=0)
    zeros_SH = _steps(full_S[:, None], branch.dilation) - count_SH
    head_SH = torch.arange(len(phase_H)).expand_as(first_SH)
    taken_SH = count_SH > 0
    return _Sequences(*(of_SH[taken_SH] for of_SH in (first_SH, head_SH, count_SH, zeros_SH)))


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


def _steps(extent: Tensor, step: int) -> Tensor:
    return (extent + step - 1) // step


def _alike(sequences: _Sequences, spare_pairs: int | None) -> Iterator[_Sequences]:
    """Part sequences by length, but pad those together whose own call would cost more."""
    spare = SPARE_PAIRS_ELSEWHERE if spare_pairs is None else spare_pairs
    length_U, n_U = (of.tolist() for of in torch.unique(sequences.count_G, return_counts=True))
    longest, n_longest, padded = length_U[-1], n_U[-1], False
    ends = [longest]
    for length, n_alike in zip(length_U[-2::-1], n_U[-2::-1], strict=True):
        cost = n_alike * (longest**2 - length**2)
        if not padded:
            cost += MASK_COST * n_longest * longest**2
        padded = cost < spare
        if not padded:
            ends.append(length)
            longest, n_longest = length, n_alike
    for most, fewer in pairwise([*ends, 0]):
        own_G = (sequences.count_G <= most) & (sequences.count_G > fewer)
        parts = [torch.split(of_G[own_G], MOST_SEQUENCES) for of_G in sequences]
        yield from (_Sequences(*own) for own in zip(*parts, strict=True))


def _group(
    own: _Sequences, dilation: int, n_heads: int, *, zeros: bool, device: torch.device
) -> SequenceGroup:
    step_N = torch.arange(int(own.count_G.max()))
    valid_GN = step_N < own.count_G[:, None]
    token_GN = own.first_G[:, None] + dilation * step_N.where(valid_GN, 0)
    row_GN = token_GN * n_heads + own.head_G[:, None]
    query_GN = token_GN * 3 * n_heads + own.head_G[:, None]
    place_M, bias_GN, zeros_G1 = None, None, None
    if not valid_GN.all():
        place_M = valid_GN.flatten().nonzero().flatten().to(device)
        bias_GN = torch.zeros(valid_GN.shape).masked_fill(~valid_GN, -torch.inf).to(device)
    if zeros and own.zeros_G.any():
        zeros_G1 = own.zeros_G[:, None].float().to(device)
    return SequenceGroup(
        row_GN[valid_GN].to(device), query_GN.to(device), place_M, bias_GN, zeros_G1
    )
