"""Slow, obvious versions of the objectives: float64 numpy, one loop for each sum."""

from __future__ import annotations

import numpy as np


def log_softmax(row: np.ndarray) -> np.ndarray:
    shifted = row - row.max()
    return shifted - np.log(np.exp(shifted).sum())


def cross_entropy(target: np.ndarray, logits: np.ndarray, temperature: float) -> float:
    log_probability = log_softmax(logits / temperature)
    return -sum(target[p] * log_probability[p] for p in range(len(target)))


def slow_dino_loss(student: np.ndarray, targets: np.ndarray, temperature: float) -> float:
    n_views, n_tiles, _ = student.shape
    total, n_terms = 0.0, 0
    for teacher_view in range(len(targets)):
        for student_view in range(n_views):
            if student_view == teacher_view:
                continue
            terms = [
                cross_entropy(targets[teacher_view, b], student[student_view, b], temperature)
                for b in range(n_tiles)
            ]
            total += sum(terms) / n_tiles
            n_terms += 1
    return total / n_terms


def slow_ibot_loss(
    student: np.ndarray, targets: np.ndarray, image_of_patch: list[int], *, n_images: int, t: float
) -> float:
    total = 0.0
    for image in range(n_images):
        patches = [m for m, owner in enumerate(image_of_patch) if owner == image]
        if patches:
            terms = [cross_entropy(targets[m], student[m], t) for m in patches]
            total += sum(terms) / len(patches)
    return total / n_images


def unit_rows(batch: np.ndarray) -> list[np.ndarray]:
    return [row / np.sqrt((row**2).sum()) for row in batch.astype(np.float64)]


def slow_koleo_loss(batch: np.ndarray) -> float:
    rows = unit_rows(batch)
    terms = []
    for i, row in enumerate(rows):
        distances = [np.linalg.norm(row - other) for j, other in enumerate(rows) if j != i]
        terms.append(-np.log(min(distances) + 1e-8))
    return float(np.mean(terms))


def slow_kde_loss(batch: np.ndarray, concentration: float) -> float:
    rows = unit_rows(batch)
    terms = []
    for i, row in enumerate(rows):
        kernel = [np.exp(concentration * row @ other) for j, other in enumerate(rows) if j != i]
        terms.append(np.log(np.mean(kernel)))
    return float(np.mean(terms))


def mean_pairwise_cosine(batch: np.ndarray) -> float:
    rows = unit_rows(batch)
    pairs = [rows[i] @ rows[j] for i in range(len(rows)) for j in range(i)]
    return float(np.mean(pairs))


def slow_gram_loss(student: np.ndarray, gram: np.ndarray) -> list[float]:
    values = []
    for student_image, gram_image in zip(student, gram, strict=True):
        ours, theirs = unit_rows(student_image), unit_rows(gram_image)
        pairs = [(i, j) for i in range(len(ours)) for j in range(len(ours))]
        squares = [(ours[i] @ ours[j] - theirs[i] @ theirs[j]) ** 2 for i, j in pairs]
        values.append(float(np.mean(squares)))
    return values


def slow_feature_distance(student: np.ndarray, teacher: np.ndarray) -> list[float]:
    values = []
    for ours, theirs in zip(student, teacher, strict=True):
        pairs = zip(unit_rows(np.atleast_2d(ours)), unit_rows(np.atleast_2d(theirs)), strict=True)
        values.append(float(np.mean([1 - a @ b for a, b in pairs])))
    return values


def slow_match_grid(
    tokens: np.ndarray, from_grid: tuple[int, int], to_grid: tuple[int, int]
) -> np.ndarray:
    """Each new token: hat functions of one old patch's width around its centre, edges repeated."""
    old = tokens.astype(np.float64).reshape(len(tokens), *from_grid, -1)
    new = np.zeros((len(tokens), *to_grid, old.shape[-1]))
    for row in range(to_grid[0]):
        y = min(max((row + 0.5) * from_grid[0] / to_grid[0] - 0.5, 0), from_grid[0] - 1)
        for column in range(to_grid[1]):
            x = min(max((column + 0.5) * from_grid[1] / to_grid[1] - 0.5, 0), from_grid[1] - 1)
            for i in range(from_grid[0]):
                for j in range(from_grid[1]):
                    weight = max(0, 1 - abs(y - i)) * max(0, 1 - abs(x - j))
                    new[:, row, column] += weight * old[:, i, j]
    return new.reshape(len(tokens), to_grid[0] * to_grid[1], -1)
