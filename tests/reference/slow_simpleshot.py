"""SimpleShot and MI-SimpleShot as the papers tell them, one episode, class and row at a time."""

from __future__ import annotations

import numpy as np


def normalised(row: np.ndarray) -> np.ndarray:
    length = np.sqrt((row**2).sum())
    return row / length if length > 0 else row


def slow_class_vectors(support: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean of all support rows, and for each class the mean of centred rows of length 1."""
    mean = np.concatenate(support).astype(np.float64).mean(axis=0)
    vectors = [np.mean([normalised(row - mean) for row in rows], axis=0) for rows in support]
    return mean, np.stack(vectors)


def slow_nearest(test: np.ndarray, mean: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Place of the nearest class vector of each test row."""
    places = []
    for row in test.astype(np.float64):
        query = normalised(row - mean)
        places.append(np.argmin([np.sqrt(((query - vector) ** 2).sum()) for vector in vectors]))
    return np.array(places)


def slow_episode(
    train: np.ndarray, rows_of_class: list[np.ndarray], test: np.ndarray
) -> np.ndarray:
    """Predicted places of one episode, from the train rows of each class that it sees."""
    mean, vectors = slow_class_vectors([train[rows] for rows in rows_of_class])
    return slow_nearest(test, mean, vectors)


def slow_bag_distances(
    train: np.ndarray, rows_of_class: list[np.ndarray], bag: np.ndarray, top_k: int, power: int
) -> np.ndarray:
    """Mean of the ``top_k`` smallest distances (to a power) of a bag's tiles to each class."""
    mean, vectors = slow_class_vectors([train[rows] for rows in rows_of_class])
    means = []
    for vector in vectors:
        distances = [
            np.sqrt(((normalised(tile - mean) - vector) ** 2).sum()) ** power
            for tile in bag.astype(np.float64)
        ]
        means.append(np.mean(sorted(distances)[:top_k]))
    return np.array(means)
