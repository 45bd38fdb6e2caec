"""Recompute macenko.json by running torchstain.

    python tests/golden/regenerate_macenko.py

Needs torchstain 1.4.1 (MIT) beside the test environment; its numpy normaliser is run, not copied.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from stained_pixels import bundled_tissue

EVERY = 997  # one pixel in so many is kept


def main() -> None:
    """Fit and normalise the bundled tissue pixels, and keep what comes out."""
    from torchstain.numpy.normalizers.macenko import NumpyMacenkoNormalizer

    pixels = bundled_tissue()
    fitted = NumpyMacenkoNormalizer()
    fitted.fit(pixels)
    normalised, _, _ = NumpyMacenkoNormalizer().normalize(pixels, stains=False)
    golden = {
        "vectors_23": fitted.HERef.T.tolist(),
        "strongest_2": fitted.maxCRef.tolist(),
        "every": EVERY,
        "normalised": normalised.reshape(-1, 3)[::EVERY].astype(int).tolist(),
        "mean": np.mean(normalised, axis=(0, 1)).tolist(),
        "source": "torchstain 1.4.1, NumpyMacenkoNormalizer",
    }
    Path(__file__).with_name("macenko.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
