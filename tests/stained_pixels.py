"""Pixels of known stains, and tissue pixels of the bundled tiles."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anlage import samples

WHITE, LEAST_DENSITY = 240, 0.15


def bundled_tissue() -> NDArray[np.uint8]:
    """(H, 64, 3) uint8: pixels of 24 bundled tiles that are no glass, in the tiles' order."""
    files = sorted(samples.organ_tiles().parent.glob("organ5/*/*.jpg"))[::10][:24]
    pixels = np.concatenate([np.asarray(Image.open(file)).reshape(-1, 3) for file in files])
    dark = (-np.log((pixels.astype(np.float64) + 1) / WHITE) >= LEAST_DENSITY).all(axis=1)
    tissue = pixels[dark]
    return tissue[: len(tissue) // 64 * 64].reshape(-1, 64, 3)


def mixed(
    concentration_P2: NDArray[np.float64], vectors_23: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """Pixels, (P, 3) uint8, that two stains of these concentrations give."""
    return np.rint(WHITE * np.exp(-concentration_P2 @ vectors_23) - 1).astype(np.uint8)


def two_stained(n: int, *, seed: int) -> NDArray[np.float64]:
    """Concentrations, (n, 2): a third nearly one stain, a third nearly the other, a third both."""
    rng = np.random.default_rng(seed)
    concentration = rng.uniform(0.5, 1.5, (n, 2))
    concentration[: n // 3, 1] *= 0.02
    concentration[n // 3 : 2 * n // 3, 0] *= 0.02
    return concentration
