"""Multi-head self-attention written out, float64 numpy, one loop for each index."""

from __future__ import annotations

import numpy as np


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / np.sqrt(x.var() + 1e-6) * weight + bias


def slow_attention(tokens: np.ndarray, weights: dict[str, np.ndarray], n_heads: int) -> np.ndarray:
    """Attention over one (N, D) sequence; ``weights`` is the module's state dict."""
    n_tokens, width = tokens.shape
    head = width // n_heads
    qkv = tokens @ weights["qkv.weight"].T + weights["qkv.bias"]
    mixed = np.zeros((n_tokens, width))
    for h in range(n_heads):
        own = slice(h * head, (h + 1) * head)
        query, key, value = (qkv[:, part * width : (part + 1) * width][:, own] for part in range(3))
        if "q_norm.weight" in weights:
            query, key = (
                np.stack(
                    [layer_norm(row, weights[f"{n}.weight"], weights[f"{n}.bias"]) for row in rows]
                )
                for n, rows in (("q_norm", query), ("k_norm", key))
            )
        for i in range(n_tokens):
            score = np.array([query[i] @ key[j] / np.sqrt(head) for j in range(n_tokens)])
            share = np.exp(score - score.max())
            share /= share.sum()
            mixed[i, own] = sum(share[j] * value[j] for j in range(n_tokens))
    return mixed @ weights["proj.weight"].T + weights["proj.bias"]
