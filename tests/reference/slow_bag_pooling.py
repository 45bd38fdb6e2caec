"""Slow, obvious poolings: float64 numpy, one bag and one tile at a time."""

from __future__ import annotations

import math

import numpy as np


def softmax(row: np.ndarray) -> np.ndarray:
    grown = np.exp(row - row.max())
    return grown / grown.sum()


def linear(weights: dict[str, np.ndarray], name: str, row: np.ndarray) -> np.ndarray:
    return weights[f"{name}.weight"] @ row + weights[f"{name}.bias"]


def slow_attention_pooling(
    bag: np.ndarray, weights: dict[str, np.ndarray], *, gated: bool, activation: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """ABMIL of one bag: its embedding, and the attention of each tile and branch."""
    hidden, scores = [], []
    for tile in bag:
        row = linear(weights, "embed.0", tile) if "embed.0.weight" in weights else tile
        row = np.maximum(row, 0) if activation and "embed.0.weight" in weights else row
        factor = np.tanh(linear(weights, "attention.content", row))
        if gated:
            factor = factor / (1 + np.exp(-linear(weights, "attention.gate", row)))
        hidden.append(row)
        scores.append(linear(weights, "attention.score", factor))
    attention = np.stack([softmax(column) for column in np.stack(scores, axis=1)], axis=1)
    embedding = [
        sum(attention[i, a] * hidden[i] for i in range(len(bag))) for a in range(len(scores[0]))
    ]
    return np.stack(embedding), attention


def slow_instance_loss(
    top: np.ndarray,
    bottom: np.ndarray,
    target: int,
    n_tiles: int,
    *,
    kind: str,
    out_of_class: bool,
) -> float:
    """CLAM's instance loss of one bag from (C, K, 2) logits, of which n_tiles a side count."""

    def loss(pair: np.ndarray, label: int) -> float:
        margin = np.array([0.0 if j == label else kind == "svm" for j in range(2)])
        return math.log(sum(math.exp(pair[j] + margin[j]) for j in range(2))) - pair[label]

    terms = []
    for c in range(len(top)):
        if c == target:
            tiles = [loss(top[c, k], 1) for k in range(n_tiles)]
            tiles += [loss(bottom[c, k], 0) for k in range(n_tiles)]
        elif out_of_class:
            tiles = [loss(top[c, k], 0) for k in range(n_tiles)]
        else:
            continue
        terms.append(sum(tiles) / len(tiles) if tiles else 0.0)
    return sum(terms) / len(terms)
