"""A picture of patch tokens: their three strongest directions as red, green and blue."""

# Shape suffixes: N patch tokens, D width, K = 3 components.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

PERCENTILES = (1.0, 99.0)
N_COLOURS = 3
MID_GREY = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class PatchPCA:
    """A fixed mapping from patch tokens to colours, fitted once and used on many tiles.

    Attributes:
        mean_D: (D,) mean of the tokens it was fitted on.
        component_KD: (3, D) unit directions of largest variance, falling; the loading of largest
            size is positive. Zero where the tokens have fewer directions.
        low_K: (3,) projection shown as 0: the 1st percentile.
        high_K: (3,) projection shown as 255: the 99th.
        explained_K: (3,) share of the variance along each direction, 0 to 1.
    """

    mean_D: NDArray[np.float64]
    component_KD: NDArray[np.float64]
    low_K: NDArray[np.float64]
    high_K: NDArray[np.float64]
    explained_K: NDArray[np.float64]

    def rgb(self, tokens: Floats) -> NDArray[np.uint8]:
        """Colour of each token: (..., D) in, (..., 3) uint8 out; grey 128 along a zero direction.

        Raises:
            ValueError: If the width is another than the mapping was fitted on.
        """
        if tokens.shape[-1] != len(self.mean_D):
            msg = (
                f"PatchPCA.rgb: needs tokens of width {len(self.mean_D)}; got shape "
                f"{tokens.shape}. Use tokens of the encoder it was fitted on."
            )
            raise ValueError(msg)
        projected = (tokens - self.mean_D) @ self.component_KD.T
        extent_K = self.high_K - self.low_K
        has_extent_K = extent_K > 0
        scaled = (projected - self.low_K) / np.where(has_extent_K, extent_K, 1)
        shown = np.where(has_extent_K, scaled, MID_GREY).clip(0, 1)
        return np.asarray(np.rint(shown * 255), dtype=np.uint8)


def fit_patch_pca(tokens: Floats | Sequence[Floats]) -> PatchPCA:
    """Fit the mapping on patch tokens of one or many tiles.

    The same tokens give the same colours on every machine but for rounding, whatever their order.

    Args:
        tokens: (N, D) tokens, or a list of such arrays, finite, N >= 2 in all.

    Returns:
        The mapping.

    Raises:
        ValueError: If an array is not 2-D, widths differ, a number is not finite, or there are
            fewer than two tokens.
    """
    parts = [tokens] if isinstance(tokens, np.ndarray) else list(tokens)
    _check(parts)
    n_tokens = sum(len(part) for part in parts)
    mean_D = sum(part.sum(axis=0, dtype=np.float64) for part in parts) / n_tokens
    covariance_DD = np.zeros((len(mean_D), len(mean_D)))
    for part in parts:  # one part at a time in float64, never all
        offset_ND = part - mean_D
        covariance_DD += offset_ND.T @ offset_ND / n_tokens
    component_KD, variance_K = _components(covariance_DD)
    projected_NK = np.concatenate([(part - mean_D) @ component_KD.T for part in parts])
    low_K, high_K = np.percentile(projected_NK, PERCENTILES, axis=0)
    total = float(np.trace(covariance_DD))
    return PatchPCA(
        mean_D=mean_D,
        component_KD=component_KD,
        low_K=low_K,
        high_K=high_K,
        explained_K=variance_K / total if total > 0 else np.zeros(N_COLOURS),
    )


def _components(
    covariance_DD: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The three strongest eigenvectors as rows, and their eigenvalues; zero where there is none."""
    variance, vectors = np.linalg.eigh(covariance_DD)
    variance, vectors = variance[::-1][:N_COLOURS], vectors.T[::-1][:N_COLOURS]
    largest = np.abs(vectors).argmax(axis=1)
    vectors = vectors * np.sign(vectors[np.arange(len(vectors)), largest])[:, None]
    is_real = variance > 1e-12 * max(variance[0], np.finfo(np.float64).tiny)
    n_missing = N_COLOURS - len(variance)
    component_KD = np.pad(vectors * is_real[:, None], ((0, n_missing), (0, 0)))
    return component_KD, np.pad(variance * is_real, (0, n_missing))


def _check(parts: Sequence[Floats]) -> None:
    shapes = [part.shape for part in parts]
    is_tokens = all(len(shape) == 2 for shape in shapes) and len({s[1] for s in shapes}) == 1
    if not is_tokens or sum(shape[0] for shape in shapes) < 2:
        msg = (
            "fit_patch_pca: needs two tokens or more in (N, D) arrays of one width; got shapes "
            f"{shapes[:4]}. Give the patch tokens of one encoder, batch axis unfolded."
        )
        raise ValueError(msg)
    if not all(np.isfinite(part).all() for part in parts):
        msg = "fit_patch_pca: needs finite tokens; got NaN or an infinity. Embed again, in float32."
        raise ValueError(msg)
