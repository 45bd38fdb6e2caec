"""Clusters of clusters: k-means of embeddings, then of its centroids, spread evenly by resampling.

Shape suffixes: N rows, D embedding width, C clusters of a level, T levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anlage.errors import AnlageError
from anlage.progress import meter

Rows = NDArray[np.floating[Any]]
Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
BLOCK_ROWS = 65_536  # brought to float32 at a time
ROWS_A_CENTROID = 256  # that k-means is trained on at most: more move a centroid no further
N_ITERATIONS = 20
CLUSTERS_BY = "faiss"
MISSING = "is needed to cluster, and not installed. Run: pip install 'anlage[curation]'."


@dataclass(frozen=True, slots=True, eq=False)
class ClusterTree:
    """Clusters of rows, and clusters of those; every one holds at least one row.

    Attributes:
        cluster_of: For each level, finest first: the cluster of each row, (N,) int64, then that of
            each cluster of the level before, (C,) int64.
        centroids: For each level, (C, D) float32.
    """

    cluster_of: tuple[Integers, ...]
    centroids: tuple[Floats, ...]

    @property
    def n_clusters(self) -> list[int]:
        """Clusters of each level, finest first."""
        return [len(level) for level in self.centroids]

    def paths(self) -> Integers:
        """(N, T) int64 the clusters of each row, coarsest first."""
        column = self.cluster_of[0]
        columns = [column]
        for parent in self.cluster_of[1:]:
            column = parent[column]
            columns.append(column)
        return np.stack(columns[::-1], axis=1)


def hierarchical_kmeans(
    feature_ND: Rows, *, n_clusters: Sequence[int], n_resamplings: int = 10, seed: int = 0
) -> ClusterTree:
    """Cluster embeddings into a tree whose leaves lie evenly over what there is.

    k-means puts most centroids where most rows are. Resampling takes the same number of rows
    nearest to each centroid, clusters these anew and assigns all rows again: each time the
    centroids follow the density of rows less. The next level does the same with the centroids.

    Args:
        feature_ND: (N, D) embeddings, finite; brought to length 1 here.
        n_clusters: Clusters of each level, finest first, falling; clusters that end up empty are
            dropped.
        n_resamplings: Times that each level is resampled; 0 for plain k-means of k-means.
        seed: Seed of all of it. The same rows, seed and threads give the same tree.

    Raises:
        ValueError: If there are fewer rows than clusters, or the numbers do not fall.
        AnlageError: If faiss is not installed.

    Source: Vo et al. 2024, Automatic data curation for self-supervised learning, arXiv:2405.15613,
    algorithms 1 and 2 (closest rows, ten resamplings). Differences: half of a mean cluster is
    taken of each, at most 256 rows (the paper sets a number a level); k-means trains on at most 256
    rows a centroid, as faiss does by default.
    """
    _refuse_levels(n_clusters, n_rows=len(feature_ND), n_resamplings=n_resamplings)
    faiss = _faiss()
    generator = np.random.default_rng(seed)
    rows: Rows = feature_ND
    is_unit = False
    cluster_of, centroids = [], []
    n_steps = len(n_clusters) * (n_resamplings + 1)
    with meter("k-means", total=n_steps, unit="rounds") as progress:
        for n_wanted in n_clusters:
            k = min(n_wanted, len(rows))
            centre_CD = _kmeans(faiss, _sampled(rows, k, generator), k, generator, is_unit=is_unit)
            label_N, distance_N = nearest_centroid(rows, centre_CD, is_unit=is_unit)
            progress.advance()
            for _ in range(n_resamplings):
                chosen = _nearest_of_each(label_N, distance_N, n=_n_of_each(len(rows), k))
                if len(chosen) >= k:
                    centre_CD = _kmeans(faiss, rows[chosen], k, generator, is_unit=is_unit)
                    label_N, distance_N = nearest_centroid(rows, centre_CD, is_unit=is_unit)
                progress.advance()
            used, label_N = np.unique(label_N, return_inverse=True)
            cluster_of.append(label_N.astype(np.int64))
            centroids.append(centre_CD[used])
            rows, is_unit = centroids[-1], True  # centroids are clustered as they are
    return ClusterTree(tuple(cluster_of), tuple(centroids))


def nearest_centroid(
    rows_ND: Rows, centre_CD: Floats, *, is_unit: bool = False
) -> tuple[Integers, Floats]:
    """The nearest centroid of each row, and the squared distance to it.

    Args:
        rows_ND: (N, D) embeddings.
        centre_CD: (C, D) float32.
        is_unit: Whether rows are taken as they are; else each is first brought to length 1.

    Returns:
        (N,) int64, (N,) float32.
    """
    index = _faiss().IndexFlatL2(centre_CD.shape[1])
    index.add(centre_CD)
    labels, distances = [], []
    for first in range(0, len(rows_ND), BLOCK_ROWS):
        block_ND = _float32(rows_ND[first : first + BLOCK_ROWS], is_unit=is_unit)
        distance_N1, label_N1 = index.search(block_ND, 1)
        labels.append(label_N1[:, 0])
        distances.append(distance_N1[:, 0])
    return np.concatenate(labels).astype(np.int64), np.concatenate(distances)


def _kmeans(
    faiss: ModuleType, rows_ND: Rows, k: int, generator: np.random.Generator, *, is_unit: bool
) -> Floats:
    """Centroids, (k, D) float32, from a k-means++ start."""
    run = faiss.Kmeans(
        rows_ND.shape[1],
        k,
        niter=N_ITERATIONS,
        seed=int(generator.integers(1, 2**31)),
        init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
        min_points_per_centroid=1,
        max_points_per_centroid=len(rows_ND),
    )
    run.train(_float32(rows_ND, is_unit=is_unit))
    return np.array(run.centroids, dtype=np.float32)


def _sampled(rows: Rows, k: int, generator: np.random.Generator) -> Rows:
    most = k * ROWS_A_CENTROID
    if len(rows) <= most:
        return rows
    return rows[np.sort(generator.choice(len(rows), most, replace=False))]


def _n_of_each(n_rows: int, k: int) -> int:
    return min(max(n_rows // (2 * k), 1), ROWS_A_CENTROID)


def _nearest_of_each(label_N: Integers, distance_N: Floats, *, n: int) -> Integers:
    """The n rows nearest to their centroid of each cluster, all of smaller ones; ascending."""
    order = np.lexsort((distance_N, label_N))
    sorted_label = label_N[order]
    first = np.searchsorted(sorted_label, sorted_label, side="left")
    return np.sort(order[np.arange(len(order)) - first < n])


def _float32(rows_ND: Rows, *, is_unit: bool) -> Floats:
    block_ND = np.ascontiguousarray(rows_ND, dtype=np.float32)
    if is_unit:
        return block_ND
    length_N1 = np.linalg.norm(block_ND, axis=1, keepdims=True)
    return np.asarray(block_ND / np.where(length_N1 > 0, length_N1, 1))


def _refuse_levels(n_clusters: Sequence[int], *, n_rows: int, n_resamplings: int) -> None:
    falls = all(a > b for a, b in pairwise(n_clusters))
    if not n_clusters or min(n_clusters) < 1 or not falls:
        told = ", ".join(map(str, n_clusters)) or "none"
        msg = (
            f"hierarchical_kmeans: needs falling numbers of clusters, such as 200, 20; got {told}."
        )
        raise ValueError(msg)
    if n_rows < n_clusters[0]:
        msg = (
            f"hierarchical_kmeans: needs at least as many tiles as clusters; got {n_rows} for "
            f"{n_clusters[0]}. Ask for {max(n_rows // 10, 1)} clusters or fewer."
        )
        raise ValueError(msg)
    if n_resamplings < 0:
        msg = f"hierarchical_kmeans: needs n_resamplings >= 0; got {n_resamplings}. 10 is usual."
        raise ValueError(msg)


def _faiss() -> ModuleType:
    try:
        import faiss
    except ImportError as error:
        raise AnlageError(CLUSTERS_BY, MISSING) from error
    module: ModuleType = faiss
    return module
