"""Dilated attention of LongNet over packed bags: its branches, and their merge.

Shape suffixes: T tokens of all bags, H heads, E width of a head, B branches, N tokens that one
token attends to in a branch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from anlage.models.dilated_groups import Group, Heads
from anlage.models.dilated_kernels import Attended, choose_kernel
from anlage.models.dilated_plan import (
    Branch,
    DilatedPlan,
    HeadPhase,
    Pad,
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

    For the backward pass it keeps its input and the output of each branch, nothing in between. It
    runs in the dtype of its input whatever autocast says.

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
    with torch.autocast(qkv_T3HE.device.type, enabled=False):
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
    n_tokens, n_heads, width = query_THE.shape
    exact = torch.promote_types(query_THE.dtype, torch.float32)
    share_BHT = query_THE.new_zeros(len(plan.branches), n_heads, n_tokens, dtype=exact)
    sum_BH = share_BHT.new_full(share_BHT.shape[:2], UNCOVERED)
    for share_HT, sum_H, groups in zip(share_BHT, sum_BH, plan.branches, strict=True):
        for group in groups:
            for head, asked, token_N, n_zeros in group.sequences_of(token, n_heads):
                query_E = torch.zeros_like(query_THE[0, head], dtype=exact)
                if asked is not None:
                    query_E = query_THE[asked, head].to(exact) * width**-0.5
                logit_N = key_THE[token_N, head].to(exact) @ query_E
                log_zeros = logit_N.new_tensor(n_zeros).log()
                sum_H[head] = torch.logaddexp(logit_N.logsumexp(0), log_zeros)
                share_HT[head, token_N] = torch.exp(logit_N - sum_H[head])
    merged_HT: Tensor = (torch.softmax(sum_BH, dim=0)[..., None] * share_BHT).sum(0)
    return merged_HT


class _DilatedAttention(torch.autograd.Function):
    """All branches as one operation.

    A branch holds a row at most once, so gradients of a row add up over branches alone. Zero keys
    are never written out: they only raise the log-sum-exp, and thereby shrink the output; since
    their values are zero, the gradient of a kernel given both is that of attention with them.
    """

    @staticmethod
    def forward(ctx: Any, qkv_T3HE: Tensor, plan: DilatedPlan) -> Tensor:  # noqa: ANN401
        shape_THE = qkv_T3HE[:, 0].shape
        exact = torch.promote_types(qkv_T3HE.dtype, torch.float32)
        if not ctx.needs_input_grad[0]:
            sum_TH = qkv_T3HE.new_full(shape_THE[:2], UNCOVERED, dtype=exact)
            return _merged_on_the_way(qkv_T3HE, plan, sum_TH)
        sum_BTH = qkv_T3HE.new_full((len(plan.branches), *shape_THE[:2]), UNCOVERED, dtype=exact)
        attended = []
        for sum_TH, group in _walk(plan, sum_BTH):
            attended.append(_attend(group.heads(qkv_T3HE), group))
            group.put_sums(sum_TH, attended[-1].sums)
        weight_BTH = torch.softmax(sum_BTH, dim=0, out=sum_BTH)
        out_THE = qkv_T3HE.new_zeros(shape_THE)
        for (weight_TH, group), own in zip(_walk(plan, weight_BTH), attended, strict=True):
            group.add(out_THE, weight_TH, own.out)
        ctx.plan = plan
        ctx.n_kept = [len(own.kept) for own in attended]
        saved = [part for own in attended for part in (own.out, own.sums, *own.kept)]
        ctx.save_for_backward(qkv_T3HE, weight_BTH, *saved)
        return out_THE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_THE: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        qkv_T3HE, weight_BTH, *saved = ctx.saved_tensors
        grad_THE, parts = grad_THE.contiguous(), iter(saved)
        grad_T3HE = torch.zeros_like(qkv_T3HE)
        for (weight_TH, group), n_kept in zip(_walk(ctx.plan, weight_BTH), ctx.n_kept, strict=True):
            attended = Attended(next(parts), next(parts), tuple(next(parts) for _ in range(n_kept)))
            heads = group.heads(qkv_T3HE)
            grad = group.weighted(grad_THE, weight_TH)
            kernel = choose_kernel(heads, group.bias_GN)
            grads = kernel.backward(grad, heads, group.bias_GN, attended)
            group.add_gradients(grad_T3HE, grads)
        return grad_T3HE, None


def _merged_on_the_way(qkv_T3HE: Tensor, plan: DilatedPlan, sum_TH: Tensor) -> Tensor:
    """The same without keeping the output of each branch: what has no gradient needs none."""
    out_THE = torch.zeros_like(qkv_T3HE[:, 0], memory_format=torch.contiguous_format)
    for group in (group for groups in plan.branches for group in groups):
        own = _attend(group.heads(qkv_T3HE), group)
        group.merge(out_THE, sum_TH, own.out, own.sums)
    return out_THE


def _walk(plan: DilatedPlan, of_BTH: Tensor) -> Iterator[tuple[Tensor, Group]]:
    for of_TH, groups in zip(of_BTH, plan.branches, strict=True):
        yield from ((of_TH, group) for group in groups)


def _attend(heads: Heads, group: Group) -> Attended:
    attended = choose_kernel(heads, group.bias_GN).forward(heads, group.bias_GN)
    if group.zeros is not None:
        total = torch.logaddexp(attended.sums, group.zeros.to(attended.sums.dtype).log())
        shrink = torch.exp(attended.sums - total)[..., None]
        attended.out.mul_(shrink.to(attended.out.dtype))
        attended.sums.copy_(total)
    return attended
