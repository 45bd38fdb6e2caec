"""Attention that tells its log-sum-exp, by the kernel that suits the device, and its gradient.

Shape suffixes: G sequences, h heads of each, N tokens, E width of a head, C queries of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from anlage.models.dilated_groups import Heads

aten = torch.ops.aten
backend = torch.backends.cuda

CHUNK_LOGITS = 2**25
"""Logits that exist at a time where no kernel is."""


FLASH_WIDTHS = 8
"""Of which the width of a head has to be a multiple for flash attention."""


class Attended(NamedTuple):
    """What a kernel gives, and wants back for the gradient.

    Attributes:
        out: (G, h, N, E) attention.
        sums: (G, h, N) log-sum-exp of the logits, at least float32. A view of what is kept: a
            caller who changes it and ``out`` in place to those of attention to more keys has the
            gradient of that.
        kept: What the gradient needs besides.
    """

    out: Tensor
    sums: Tensor
    kept: tuple[Tensor, ...]


class Kernel(NamedTuple):
    """A way to attend, and its gradient by query, key and value.

    Attributes:
        forward: From queries, keys and values, (G, h, N, E), and what is added to the logits of a
            key, (G, N) or None.
        backward: From the gradient of the output, (G, h, N, E), the same, and what forward gave.
    """

    forward: Callable[[Heads, Tensor | None], Attended]
    backward: Callable[[Tensor, Heads, Tensor | None, Attended], Heads]


def choose_kernel(heads: Heads, bias_GN: Tensor | None) -> Kernel:
    """The fastest kernel that takes these queries, keys and values, and this bias of keys."""
    if heads[0].device.type == "cpu":
        return CPU
    if heads[0].device.type == "cuda":
        bias = _bias(bias_GN, heads[0])
        asked = backend.SDPAParams(*heads, bias, 0.0, False, False)  # noqa: FBT003 - takes no names
        is_aligned = heads[0].shape[-1] % FLASH_WIDTHS == 0  # which torch does not ask of us
        if is_aligned and backend.can_use_flash_attention(asked):
            return FLASH
        if backend.can_use_efficient_attention(asked):
            return EFFICIENT
    return MATH


def _cpu_forward(heads: Heads, bias_GN: Tensor | None) -> Attended:
    bias = _bias(bias_GN, heads[0])
    out, total = aten._scaled_dot_product_flash_attention_for_cpu(*heads, attn_mask=bias)
    return Attended(out, total, ())


def _cpu_backward(grad: Tensor, heads: Heads, bias_GN: Tensor | None, attended: Attended) -> Heads:
    # in half precision this kernel takes up to ten times as long as in single
    exact = torch.promote_types(grad.dtype, torch.float32)
    grads: Heads = aten._scaled_dot_product_flash_attention_for_cpu_backward(
        *(part.to(exact) for part in (grad, *heads, attended.out)),
        attended.sums,
        dropout_p=0.0,
        is_causal=False,
        attn_mask=None if bias_GN is None else _bias(bias_GN.to(exact), heads[0].to(exact)),
    )
    return grads


def _flash_forward(heads: Heads, bias_GN: Tensor | None) -> Attended:
    assert bias_GN is None
    given = aten._scaled_dot_product_flash_attention(*heads)
    return Attended(given[0], given[1], (given[6], given[7]))


def _flash_backward(
    grad: Tensor, heads: Heads, bias_GN: Tensor | None, attended: Attended
) -> Heads:
    assert bias_GN is None
    seed, offset = attended.kept
    n_tokens = grad.shape[2]
    grads: Heads = aten._scaled_dot_product_flash_attention_backward(
        grad,
        *heads,
        attended.out,
        attended.sums,
        None,
        None,
        n_tokens,
        n_tokens,
        dropout_p=0.0,
        is_causal=False,
        philox_seed=seed,
        philox_offset=offset,
    )
    return grads


def _efficient_forward(heads: Heads, bias_GN: Tensor | None) -> Attended:
    out, total, seed, offset = aten._scaled_dot_product_efficient_attention(
        *heads, _bias(bias_GN, heads[0]), compute_log_sumexp=True
    )
    return Attended(out, total[..., : out.shape[2]], (total, seed, offset))


def _efficient_backward(
    grad: Tensor, heads: Heads, bias_GN: Tensor | None, attended: Attended
) -> Heads:
    total, seed, offset = attended.kept
    query, key, value, _ = aten._scaled_dot_product_efficient_attention_backward(
        grad,
        *heads,
        _bias(bias_GN, heads[0]),
        attended.out,
        total,
        philox_seed=seed,
        philox_offset=offset,
        dropout_p=0.0,
        grad_input_mask=[True, True, True, False],
    )
    return query, key, value


def _math_forward(heads: Heads, bias_GN: Tensor | None) -> Attended:
    query, key, value = heads
    outs, totals = [], []
    for query_GhCE in torch.split(query, _chunk(query), dim=2):
        logit_GhCN = _logits(query_GhCE, key, bias_GN)
        total_GhC1 = logit_GhCN.logsumexp(-1, keepdim=True)
        outs.append(torch.exp(logit_GhCN - total_GhC1).to(value.dtype) @ value)
        totals.append(total_GhC1[..., 0])
    return Attended(torch.cat(outs, 2), torch.cat(totals, 2), ())


def _math_backward(grad: Tensor, heads: Heads, bias_GN: Tensor | None, attended: Attended) -> Heads:
    query, key, value = heads
    exact = torch.promote_types(query.dtype, torch.float32)
    grad_query = []
    grad_key, grad_value = (torch.zeros_like(part, dtype=exact) for part in (key, value))
    wholes = (query, grad, attended.out, attended.sums)
    chunks = (torch.split(part, _chunk(query), dim=2) for part in wholes)
    for query_GhCE, grad_GhCE, out_GhCE, sum_GhC in zip(*chunks, strict=True):
        share_GhCN = torch.exp(_logits(query_GhCE, key, bias_GN) - sum_GhC[..., None])
        grad_value += share_GhCN.mT @ grad_GhCE.to(exact)
        mean_GhC1 = (grad_GhCE.to(exact) * out_GhCE).sum(-1, keepdim=True)
        slope_GhCN = share_GhCN * (grad_GhCE.to(exact) @ value.to(exact).mT - mean_GhC1)
        slope_GhCN *= query.shape[-1] ** -0.5
        grad_query.append(slope_GhCN @ key.to(exact))
        grad_key += slope_GhCN.mT @ query_GhCE.to(exact)
    return torch.cat(grad_query, 2), grad_key, grad_value


def _logits(query_GhCE: Tensor, key: Tensor, bias_GN: Tensor | None) -> Tensor:
    exact = torch.promote_types(query_GhCE.dtype, torch.float32)
    scaled_GhCE = query_GhCE.to(exact) * query_GhCE.shape[-1] ** -0.5
    logit_GhCN: Tensor = scaled_GhCE @ key.to(exact).mT
    return logit_GhCN if bias_GN is None else logit_GhCN + bias_GN[:, None, None]


def _chunk(query: Tensor) -> int:
    return max(1, CHUNK_LOGITS // query[..., 0].numel())


def _bias(bias_GN: Tensor | None, query: Tensor) -> Tensor | None:
    """As kernels take it: (G, h, N, N), of the queries' dtype, rows at multiples of 16 values."""
    if bias_GN is None:
        return None
    n_sequences, n_tokens = bias_GN.shape
    aligned = bias_GN.new_zeros(n_sequences, -(-n_tokens // 16) * 16, dtype=query.dtype)
    aligned[:, :n_tokens] = bias_GN
    return aligned[:, None, None, :n_tokens].expand(-1, query.shape[1], n_tokens, -1)


CPU = Kernel(_cpu_forward, _cpu_backward)
FLASH = Kernel(_flash_forward, _flash_backward)
EFFICIENT = Kernel(_efficient_forward, _efficient_backward)
MATH = Kernel(_math_forward, _math_backward)
