"""Recompute dilated_attention.json by running the official code on the CPU.

    uv run --with einops python tests/golden/regenerate_dilated_attention.py CLONE [FILE]

Needs a clone of github.com/microsoft/torchscale (MIT; torchscale on PyPI has no dilated
attention); its files are run, not copied. Its module projects queries, keys, values and outputs by
the identity, and attention in plain torch stands in for flash-attn.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from dilated_inputs import CASES, Case, inputs_of
from torch import Tensor


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object
) -> tuple[Tensor, Tensor]:
    """What flash-attn gives: (B, L, H, E), and log-sum-exp (B, H, L)."""
    logits = torch.einsum("bqhe,bkhe->bhqk", query, key) * query.shape[-1] ** -0.5
    sums = logits.logsumexp(dim=-1)
    return torch.einsum("bhqk,bkhe->bqhe", (logits - sums[..., None]).exp(), value), sums


def official_module(case: Case) -> torch.nn.Module:
    package = importlib.import_module("torchscale.component.dilated_attention")
    importlib.import_module(
        "torchscale.component.multihead_attention"
    ).flash_attn_func = plain_attention
    settings = SimpleNamespace(
        segment_length=[segment for segment, _ in case.branches],
        dilated_ratio=[dilation for _, dilation in case.branches],
        flash_attention=True,
        seq_parallel=False,
        multiway=False,
        xpos_rel_pos=False,
        layernorm_eps=1e-5,
    )
    width = case.n_heads * case.width
    module = package.DilatedAttention(settings, width, case.n_heads, self_attention=True).double()
    for layer in (module.q_proj, module.k_proj, module.v_proj, module.out_proj):
        torch.nn.init.eye_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return module


def numbers(case: Case) -> dict[str, list[float]]:
    """Output, and gradients by queries, keys and values, each (T, H, E) flattened."""
    *parts, above = (part.flatten(1)[None] for part in inputs_of(case))
    leaves = [part.requires_grad_() for part in parts]
    out, _ = official_module(case)(*leaves)
    grads = torch.autograd.grad(out, leaves, above)
    named = dict(zip(("query", "key", "value"), grads, strict=True)) | {"out": out.detach()}
    return {name: rounded(values) for name, values in named.items()}


def rounded(values: Tensor) -> list[float]:
    return [float(f"{value:.9g}") for value in values.flatten().tolist()]


def main(clone: Path, file: Path) -> None:
    sys.path.insert(0, str(clone))
    found: dict[str, Any] = {name: numbers(case) for name, case in CASES.items()}
    file.write_text(json.dumps(found, indent=None, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    beside = Path(__file__).with_name("dilated_attention.json")
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else beside)
