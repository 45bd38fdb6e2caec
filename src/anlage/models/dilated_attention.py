"""Dilated attention of LongNet over packed bags: its branches, and their merge.

Shape suffixes: T tokens of all bags, H heads, E width of a head, B branches, R rows of tokens and
heads (T * H); G sequences of one kernel call, N tokens of the longest of them, M of all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from anlage.models.dilated_kernels import Attended, Inputs, choose_kernel
from anlage.models.dilated_plan import (
    Branch,
    DilatedPlan,
    HeadPhase,
    Pad,
    SequenceGroup,
    gigapath_branches,
    head_phases,
    plan_dilated,
)

__all__ = [
    "Branch",
    "DilatedPlan",
    "HeadPhase",
    "Pad",
    "attention_of_token",
    "dilated_attention",
    "dilated_self_attention",
    "gigapath_branches",
    "head_phases",
    "plan_dilated",
]

UNCOVERED = -1e8
"""Log-sum-exp of a token that a branch leaves out."""


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

    Raises:
        ValueError: If the plan was made for other bags or heads.

    Source: Ding et al. 2023, LongNet, arXiv:2307.02486, sections 2.2 and 2.3.
    """
    return dilated_self_attention(torch.stack((query_THE, key_THE, value_THE), dim=1), plan)


def dilated_self_attention(qkv_T3HE: Tensor, plan: DilatedPlan) -> Tensor:
    """``dilated_attention`` of queries, keys and values that one layer wrote beside each other.

    For the backward pass it keeps its input and the output of each branch, nothing in between.

    Args:
        qkv_T3HE: (T, 3, H, E).
        plan: Made for these bags.

    Returns:
        (T, H, E).

    Raises:
        ValueError: If the plan was made for other bags or heads.
    """
    n_tokens, _, n_heads, _ = qkv_T3HE.shape
    if (n_tokens, n_heads) != (sum(plan.lengths), plan.n_heads):
        msg = (
            f"dilated_attention: needs a plan for its own bags; got {n_tokens} tokens of "
            f"{n_heads} heads, and a plan for {sum(plan.lengths)} of {plan.n_heads}. "
            "Call plan_dilated with the lengths of this batch."
        )
        raise ValueError(msg)
    out: Tensor = _DilatedAttention.apply(qkv_T3HE.contiguous(), plan)  # type: ignore[no-untyped-call]
    return out


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
        (H, T), float32 or float64, not negative; a row sums to 1, with ``pad="zero"`` to at most 1,
        and is zero where no branch covers the token.
    """
    n_tokens, n_heads, _ = query_THE.shape
    exact = torch.promote_types(query_THE.dtype, torch.float32)
    query_HE = query_THE[token].to(exact) * query_THE.shape[-1] ** -0.5
    share_BHT = query_HE.new_zeros(len(plan.branches), n_heads, n_tokens)
    sum_BH = query_HE.new_full(share_BHT.shape[:2], UNCOVERED)
    for share_HT, sum_H, groups in zip(share_BHT, sum_BH, plan.branches, strict=True):
        for group in groups:
            for token_N, head, n_zeros in _sequences_of(group, token, n_heads):
                logit_N = key_THE[token_N, head].to(exact) @ query_HE[head]
                log_zeros = logit_N.new_tensor(n_zeros).log()
                sum_H[head] = torch.logaddexp(logit_N.logsumexp(0), log_zeros)
                share_HT[head, token_N] = torch.exp(logit_N - sum_H[head])
    merged_HT: Tensor = (torch.softmax(sum_BH, dim=0)[..., None] * share_BHT).sum(0)
    return merged_HT


def _sequences_of(
    group: SequenceGroup, token: int, n_heads: int
) -> Iterator[tuple[Tensor, int, float]]:
    """The tokens, the head, and the number of zero keys of each sequence that holds a token."""
    token_GN = group.query_GN // (3 * n_heads)
    for g in (token_GN == token).any(dim=1).nonzero().flatten().tolist():
        is_token_N = slice(None) if group.bias_GN is None else group.bias_GN[g] == 0
        n_zeros = 0.0 if group.zeros_G1 is None else float(group.zeros_G1[g, 0])
        yield token_GN[g, is_token_N], int(group.query_GN[g, 0]) % n_heads, n_zeros


class _DilatedAttention(torch.autograd.Function):
    """All branches as one operation.

    A branch holds a row at most once, so gradients of a row add up over branches alone. Zero keys
    are never written out: they only raise the log-sum-exp, and thereby shrink the output; since
    their values are zero, the gradient of a kernel given both is that of attention with them.
    """

    @staticmethod
    def forward(ctx: Any, qkv_T3HE: Tensor, plan: DilatedPlan) -> Tensor:  # noqa: ANN401
        n_tokens, _, n_heads, width = qkv_T3HE.shape
        exact = torch.promote_types(qkv_T3HE.dtype, torch.float32)
        sum_BR = qkv_T3HE.new_full((len(plan.branches), n_tokens * n_heads), UNCOVERED, dtype=exact)
        attended = []
        for sum_R, groups in zip(sum_BR, plan.branches, strict=True):
            for group in groups:
                attended.append(_attend(_gathered(qkv_T3HE, group), group))
                sum_R.index_copy_(0, group.row_M, group.tokens_only(attended[-1].sum_GN))
        weight_BR = torch.softmax(sum_BR, dim=0, out=sum_BR)
        out_RE = qkv_T3HE.new_zeros(n_tokens * n_heads, width)
        for (weight_R, group), own in zip(_walk(plan, weight_BR), attended, strict=True):
            weight_M1 = weight_R.index_select(0, group.row_M)[:, None].to(out_RE.dtype)
            out_RE.index_add_(0, group.row_M, group.tokens_only(own.out_GNE) * weight_M1)
        if ctx.needs_input_grad[0]:
            ctx.plan = plan
            ctx.n_kept = [len(own.kept) for own in attended]
            kept = [part for out, _, kept in attended for part in (out, *kept)]
            sums = [own.sum_GN for own in attended]
            ctx.save_for_backward(qkv_T3HE, weight_BR, *sums, *kept)
        return out_RE.view(n_tokens, n_heads, width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_THE: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        qkv_T3HE, weight_BR, *saved = ctx.saved_tensors
        n_heads = qkv_T3HE.shape[2]
        grad_RE = grad_THE.reshape(-1, grad_THE.shape[-1])
        grad_T3HE = torch.zeros_like(qkv_T3HE)
        grad_FE = grad_T3HE.view(-1, grad_T3HE.shape[-1])
        attended = _attended(saved, ctx.n_kept)
        for (weight_R, group), own in zip(_walk(ctx.plan, weight_BR), attended, strict=True):
            weight_M1 = weight_R.index_select(0, group.row_M)[:, None].to(grad_RE.dtype)
            grad_GNE = group.padded(grad_RE.index_select(0, group.row_M) * weight_M1)
            inputs = _gathered(qkv_T3HE, group)
            grads = choose_kernel(inputs).backward(grad_GNE, inputs, own)
            row_M = group.tokens_only(group.query_GN)
            for part, grad in enumerate(grads):
                own_M = group.tokens_only(grad).to(grad_FE.dtype)
                grad_FE[part * n_heads :].index_add_(0, row_M, own_M)
        return grad_T3HE, None


def _walk(plan: DilatedPlan, weight_BR: Tensor) -> Iterator[tuple[Tensor, SequenceGroup]]:
    for weight_R, groups in zip(weight_BR, plan.branches, strict=True):
        yield from ((weight_R, group) for group in groups)


def _attended(saved: list[Tensor], n_kept: list[int]) -> Iterator[Attended]:
    sums, parts = saved[: len(n_kept)], iter(saved[len(n_kept) :])
    for sum_GN, n_own in zip(sums, n_kept, strict=True):
        yield Attended(next(parts), sum_GN, tuple(next(parts) for _ in range(n_own)))


def _gathered(qkv_T3HE: Tensor, group: SequenceGroup) -> Inputs:
    n_heads = qkv_T3HE.shape[2]
    qkv_FE = qkv_T3HE.view(-1, qkv_T3HE.shape[-1])
    query, key, value = (
        qkv_FE[part * n_heads :].index_select(0, group.query_GN.flatten()) for part in range(3)
    )
    shape = *group.query_GN.shape, -1
    return query.view(shape), key.view(shape), value.view(shape), group.bias_GN


def _attend(inputs: Inputs, group: SequenceGroup) -> Attended:
    attended = choose_kernel(inputs).forward(inputs)
    if group.zeros_G1 is not None:
        log_zeros_G1 = group.zeros_G1.to(attended.sum_GN.dtype).log()
        total_GN = torch.logaddexp(attended.sum_GN, log_zeros_G1)
        shrink_GN = torch.exp(attended.sum_GN - total_GN)
        attended.out_GNE.mul_(shrink_GN[..., None].to(attended.out_GNE.dtype))
        attended.sum_GN.copy_(total_GN)
    return attended
