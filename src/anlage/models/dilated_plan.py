"""Which tokens attend to which in dilated attention, worked out once for a batch of bags.

Shape suffixes: S segments of all bags, H heads; a sequence is one segment as one head sees it: G
sequences, U different numbers of tokens of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import log2
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from anlage.models.dilated_groups import Group, SegmentRun, gathered_group
from anlage.models.dilated_torchscale import misplaced_groups, misplaces

Pad = Literal["zero", "masked"]
HeadPhase = Literal["torchscale", "paper"]

MOST_SEQUENCES = 32_768
"""Of one kernel call; CUDA's launch grids end at 65,535."""
MOST_ROWS = {"cpu": 2**16}
"""Queries of one kernel call, so that what is gathered for it, and its gradients, stay small."""
MOST_ROWS_ELSEWHERE = 2**20
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
    branches: tuple[tuple[Group, ...], ...]


class _Run(NamedTuple):
    """Segments of one bag and one length, and the tokens they miss to a full one of that bag."""

    first: int
    n_segments: int
    n_tokens: int
    missing: int

    @property
    def n_pairs(self) -> int:
        return self.n_segments * self.n_tokens**2


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
            segments with, as Prov-GigaPath's weights expect, and gives outputs to the tokens that
            torchscale gives them to: other ones, where a bag has several segments that the dilation
            does not divide (see ``misplaced_groups``).
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
        groups = _groups(lengths, branch, phase_H, is_zero=pad == "zero", device=device)
        planned.append(tuple(groups))
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


def _groups(
    lengths: Sequence[int], branch: Branch, phase_H: Tensor, *, is_zero: bool, device: torch.device
) -> Iterator[Group]:
    spare, n_heads = SPARE_PAIRS.get(device.type, SPARE_PAIRS_ELSEWHERE), len(phase_H)
    runs: list[_Run] = []
    gathered: list[_Run] = []
    for first, length in zip(accumulate(lengths, initial=0), lengths, strict=False):
        if is_zero and misplaces(length, branch.segment, branch.dilation):
            yield from misplaced_groups(
                first,
                length,
                segment=branch.segment,
                dilation=branch.dilation,
                phase_H=phase_H,
                most_sequences=MOST_SEQUENCES,
                device=device,
            )
        else:
            runs.extend(_runs(first, length, branch.segment))
    for run in runs:
        is_worth_a_call = len(lengths) == 1 or n_heads * run.n_pairs >= 4 * spare
        if branch.dilation == 1 and is_worth_a_call:
            yield from _segment_runs(run, n_heads, is_zero=is_zero, device=device)
        else:
            gathered.append(run)
    if not gathered:
        return
    alike = _alike(_sequences(gathered, branch.dilation, phase_H), spare)
    for own in (part for together in alike for part in _calls(together, device)):
        yield gathered_group(
            own.first_G,
            own.head_G,
            own.count_G,
            own.zeros_G if is_zero else None,
            dilation=branch.dilation,
            n_heads=n_heads,
            device=device,
        )


def _segment_runs(
    run: _Run, n_heads: int, *, is_zero: bool, device: torch.device
) -> Iterator[SegmentRun]:
    zeros = torch.full((1, 1, 1), run.missing, dtype=torch.float32, device=device)
    most = max(1, _most_rows(device) // (run.n_tokens * n_heads))
    for segment in range(0, run.n_segments, most):
        yield SegmentRun(
            first=run.first + segment * run.n_tokens,
            n_segments=min(most, run.n_segments - segment),
            n_tokens=run.n_tokens,
            zeros=zeros if is_zero and run.missing else None,
        )


def _runs(first: int, length: int, segment: int) -> Iterator[_Run]:
    own = min(segment, length)
    n_full, rest = divmod(length, own)
    yield _Run(first, n_full, own, 0)
    if rest:
        yield _Run(first + n_full * own, 1, rest, own - rest)


def _sequences(runs: Sequence[_Run], dilation: int, phase_H: Tensor) -> _Sequences:
    start_S = torch.cat([run.first + run.n_tokens * torch.arange(run.n_segments) for run in runs])
    run_S = torch.tensor([run.n_segments for run in runs])
    n_S1, missing_S1 = (
        torch.tensor(own).repeat_interleave(run_S)[:, None]
        for own in ([run.n_tokens for run in runs], [run.missing for run in runs])
    )
    count_SH = _steps(n_S1 - phase_H, dilation).clamp(min=0)
    zeros_SH = _steps(n_S1 + missing_S1, dilation) - count_SH
    head_SH = torch.arange(len(phase_H)).expand_as(count_SH)
    taken_SH = count_SH > 0
    sequences = (start_S[:, None] + phase_H, head_SH, count_SH, zeros_SH)
    return _Sequences(*(of_SH[taken_SH] for of_SH in sequences))


def _steps(extent: Tensor, step: int) -> Tensor:
    return (extent + step - 1) // step


def _alike(sequences: _Sequences, spare: int) -> Iterator[_Sequences]:
    """Part sequences by length, but pad those together whose own call would cost more."""
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
        yield _Sequences(*(of_G[own_G] for of_G in sequences))


def _calls(together: _Sequences, device: torch.device) -> Iterator[_Sequences]:
    n_sequences = min(MOST_SEQUENCES, _most_rows(device) // int(together.count_G.max()))
    parts = [torch.split(of_G, max(4, n_sequences)) for of_G in together]
    yield from (_Sequences(*own) for own in zip(*parts, strict=True))


def _most_rows(device: torch.device) -> int:
    return MOST_ROWS.get(device.type, MOST_ROWS_ELSEWHERE)
