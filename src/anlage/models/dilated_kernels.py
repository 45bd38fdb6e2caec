"""Attention that tells its log-sum-exp, by the kernel that suits the device, and its gradient.

Shape suffixes: G sequences, N tokens of each, E width of a head, C queries of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

aten = torch.ops.aten
backend = torch.backends.cuda

CHUNK_LOGITS = 2**25
"""Logits that exist at a time where no kernel is."""

Inputs = tuple[Tensor, Tensor, Tensor, Tensor | None]
"""Queries, keys and values, (G, N, E), and what is added to the logits of a key, (G, N)."""
Gradients = tuple[Tensor, Tensor, Tensor]
"""By queries, keys and values, (G, N, E)."""


class Attended(NamedTuple):
    """What a kernel gives, and wants back for the gradient.

    Attributes:
        out_GNE: Attention.
        sum_GN: Log-sum-exp of the logits, at least float32; a view, so that a caller can change it
            and ``out_GNE`` in place to those of attention to more keys, and have its gradient.
        kept: What the gradient needs besides.
    """

    out_GNE: Tensor
    sum_GN: Tensor
    kept: tuple[Tensor | None, ...]


class Kernel(NamedTuple):
    """A way to attend, and its gradient by query, key and value.

    Attributes:
        forward: From the inputs.
        backward: From the gradient of the output, (G, N, E), the inputs, and what forward gave.
    """

    forward: Callable[[Inputs], Attended]
    backward: Callable[[Tensor, Inputs, Attended], Gradients]


def choose_kernel(inputs: Inputs) -> Kernel:
    """The fastest kernel that takes these inputs."""
    query_GNE, key_GNE, value_GNE, bias_GN = inputs
    if query_GNE.device.type == "cpu":
        return CPU
    if query_GNE.device.type == "cuda":
        heads = (query_GNE[:, None], key_GNE[:, None], value_GNE[:, None])
        bias = _bias(bias_GN, query_GNE)
        asked = backend.SDPAParams(*heads, bias, 0.0, False, False)  # noqa: FBT003 - takes no names
        if backend.can_use_flash_attention(asked):
            return FLASH
        if backend.can_use_efficient_attention(asked):
            return EFFICIENT
    return MATH


def _cpu_forward(inputs: Inputs) -> Attended:
    query, key, value, bias_GN = inputs
    out, total = aten._scaled_dot_product_flash_attention_for_cpu(
        query[:, None], key[:, None], value[:, None], attn_mask=_bias(bias_GN, query)
    )
    return Attended(out[:, 0], total[:, 0], (total,))


def _cpu_backward(grad_GNE: Tensor, inputs: Inputs, attended: Attended) -> Gradients:
    # in half precision this kernel takes up to ten times as long as in single
    exact = torch.promote_types(grad_GNE.dtype, torch.float32)
    grad, query, key, value, out = (
        part.to(exact) for part in (grad_GNE, *inputs[:3], attended.out_GNE)
    )
    return _without_head(
        aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad[:, None],
            query[:, None],
            key[:, None],
            value[:, None],
            out[:, None],
            attended.kept[0],
            dropout_p=0.0,
            is_causal=False,
            attn_mask=_bias(inputs[3], query),
        )
    )


def _flash_forward(inputs: Inputs) -> Attended:
    query, key, value, _ = inputs
    given = aten._scaled_dot_product_flash_attention(query[:, None], key[:, None], value[:, None])
    return Attended(given[0][:, 0], given[1][:, 0], (given[1], given[6], given[7]))


def _flash_backward(grad_GNE: Tensor, inputs: Inputs, attended: Attended) -> Gradients:
    query, key, value, _ = inputs
    total, seed, offset = attended.kept
    return _without_head(
        aten._scaled_dot_product_flash_attention_backward(
            grad_GNE[:, None],
            query[:, None],
            key[:, None],
            value[:, None],
            attended.out_GNE[:, None],
            total,
            None,
            None,
            query.shape[1],
            key.shape[1],
            dropout_p=0.0,
            is_causal=False,
            philox_seed=seed,
            philox_offset=offset,
        )
    )


def _efficient_forward(inputs: Inputs) -> Attended:
    query, key, value, bias_GN = inputs
    out, total, seed, offset = aten._scaled_dot_product_efficient_attention(
        query[:, None],
        key[:, None],
        value[:, None],
        _bias(bias_GN, query),
        compute_log_sumexp=True,
    )
    return Attended(out[:, 0], total[:, 0, : query.shape[1]], (total, seed, offset))


def _efficient_backward(grad_GNE: Tensor, inputs: Inputs, attended: Attended) -> Gradients:
    query, key, value, bias_GN = inputs
    total, seed, offset = attended.kept
    return _without_head(
        aten._scaled_dot_product_efficient_attention_backward(
            grad_GNE[:, None],
            query[:, None],
            key[:, None],
            value[:, None],
            _bias(bias_GN, query),
            attended.out_GNE[:, None],
            total,
            philox_seed=seed,
            philox_offset=offset,
            dropout_p=0.0,
            grad_input_mask=[True, True, True, False],
        )
    )


def _without_head(grads: Sequence[Tensor]) -> Gradients:
    return grads[0][:, 0], grads[1][:, 0], grads[2][:, 0]


def _math_forward(inputs: Inputs) -> Attended:
    query, key, value, bias_GN = inputs
    outs, totals = [], []
    for query_GCE in torch.split(query, _chunk(query), dim=1):
        logit_GCN = _logits(query_GCE, key, bias_GN)
        total_GC1 = logit_GCN.logsumexp(-1, keepdim=True)
        outs.append(torch.exp(logit_GCN - total_GC1).to(value.dtype) @ value)
        totals.append(total_GC1[..., 0])
    return Attended(torch.cat(outs, 1), torch.cat(totals, 1), ())


def _math_backward(grad_GNE: Tensor, inputs: Inputs, attended: Attended) -> Gradients:
    query, key, value, bias_GN = inputs
    exact = torch.promote_types(query.dtype, torch.float32)
    grad_query = []
    grad_key, grad_value = (torch.zeros_like(part, dtype=exact) for part in (key, value))
    chunks = (torch.split(part, _chunk(query), dim=1) for part in (query, grad_GNE, *attended[:2]))
    for query_GCE, grad_GCE, out_GCE, sum_GC in zip(*chunks, strict=True):
        share_GCN = torch.exp(_logits(query_GCE, key, bias_GN) - sum_GC[..., None])
        grad_value += share_GCN.transpose(1, 2) @ grad_GCE.to(exact)
        mean_GC1 = (grad_GCE.to(exact) * out_GCE).sum(-1, keepdim=True)
        slope_GCN = share_GCN * (grad_GCE.to(exact) @ value.to(exact).transpose(1, 2) - mean_GC1)
        slope_GCN *= query.shape[-1] ** -0.5
        grad_query.append(slope_GCN @ key.to(exact))
        grad_key += slope_GCN.transpose(1, 2) @ query_GCE.to(exact)
    return torch.cat(grad_query, 1), grad_key, grad_value


def _logits(query_GCE: Tensor, key_GNE: Tensor, bias_GN: Tensor | None) -> Tensor:
    exact = torch.promote_types(query_GCE.dtype, torch.float32)
    scaled_GCE = query_GCE.to(exact) * query_GCE.shape[-1] ** -0.5
    logit_GCN: Tensor = scaled_GCE @ key_GNE.to(exact).transpose(1, 2)
    return logit_GCN if bias_GN is None else logit_GCN + bias_GN[:, None]


def _chunk(query_GNE: Tensor) -> int:
    return max(1, CHUNK_LOGITS // (query_GNE.shape[0] * query_GNE.shape[1]))


def _bias(bias_GN: Tensor | None, query_GNE: Tensor) -> Tensor | None:
    """As kernels take it: (G, 1, N, N), of the queries' dtype, rows at multiples of 16 values."""
    if bias_GN is None:
        return None
    n_sequences, n_tokens = bias_GN.shape
    aligned = bias_GN.new_zeros(n_sequences, -(-n_tokens // 16) * 16, dtype=query_GNE.dtype)
    aligned[:, :n_tokens] = bias_GN
    return aligned[:, None, None, :n_tokens].expand(-1, 1, n_tokens, -1)


CPU = Kernel(_cpu_forward, _cpu_backward)
FLASH = Kernel(_flash_forward, _flash_backward)
EFFICIENT = Kernel(_efficient_forward, _efficient_backward)
MATH = Kernel(_math_forward, _math_backward)
