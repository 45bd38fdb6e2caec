"""Slow, obvious versions of what curation does: components, sharing, weights, retrieval."""

from __future__ import annotations

import numpy as np


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(N, M) cosines in float64; a zero row is like nothing."""
    units = []
    for rows in (one, other):
        wide = rows.astype(np.float64)
        length = np.linalg.norm(wide, axis=1, keepdims=True)
        units.append(wide / np.where(length > 0, length, 1))
    return units[0] @ units[1].T


def duplicates(rows: np.ndarray, threshold: float) -> list[bool]:
    """All pairs, and a flood from each row that no earlier one reached."""
    alike = cosines(rows, rows) >= threshold
    reached = [False] * len(rows)
    is_duplicate = [False] * len(rows)
    for first in range(len(rows)):
        is_duplicate[first] = reached[first]
        front = [] if reached[first] else [first]
        while front:
            row = front.pop()
            reached[row] = True
            front += [other for other in np.flatnonzero(alike[row]) if not reached[other]]
    return is_duplicate


def handed_out(sizes: list[int], n: int, order: list[int]) -> list[int]:
    """One at a time to the cluster that has the fewest of those that have more, by the order."""
    shares = [0] * len(sizes)
    for _ in range(n):
        able = [c for c in order if shares[c] < sizes[c]]
        fewest = min(shares[c] for c in able)
        shares[next(c for c in able if shares[c] == fewest)] += 1
    return shares


def drawn(paths: list[tuple[int, ...]], n: int, seed: int) -> list[int]:
    """Top-down sharing by recursion over a tree of dictionaries."""
    generator = np.random.default_rng(seed)

    def below(rows: list[int], n: int, level: int) -> list[int]:
        if n == 0:
            return []
        if n == len(rows) or level == len(paths[rows[0]]):
            return list(generator.permutation(rows)[:n])
        children: dict[int, list[int]] = {}
        for row in rows:
            children.setdefault(paths[row][level], []).append(row)
        names = sorted(children)
        order = generator.permutation(len(names)).tolist()
        shares = handed_out([len(children[name]) for name in names], n, order)
        found = []
        for name, share in zip(names, shares, strict=True):
            found += below(children[name], share, level + 1)
        return found

    return sorted(int(row) for row in below(list(range(len(paths))), n, 0))


def weights(paths: list[tuple[int, ...]]) -> list[float]:
    """Shares handed down a tree: each child the same part of its parent's."""
    found = [0.0] * len(paths)

    def below(rows: list[int], share: float, level: int) -> None:
        if level == len(paths[rows[0]]):
            for row in rows:
                found[row] = share / len(rows)
            return
        names = {paths[row][level] for row in rows}
        for name in names:
            below([r for r in rows if paths[r][level] == name], share / len(names), level + 1)

    below(list(range(len(paths))), float(len(paths)), 0)
    return found
