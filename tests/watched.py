"""Labelled tiles for a run to be watched on: colour tells the class, brightness the patient."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from anlage.training.watched_tiles import WatchedTiles

COLOURS = {"pink": (180, 60, 110), "violet": (90, 40, 180)}


def make_watched_tiles(*, n_groups: int = 6, per_group: int = 5, size_px: int = 32, **changes):
    """Two classes in turn, one a group; any field can be given instead."""
    generator = np.random.default_rng(5)
    group = np.repeat([f"case{number}" for number in range(n_groups)], per_group)
    label = np.array([list(COLOURS)[int(name[4:]) % 2] for name in group])
    colour = np.array([COLOURS[name] for name in label])[:, :, None, None]
    noise = generator.integers(0, 70, (len(label), 3, size_px, size_px))
    settings = {
        "path": Path("watched.csv"),
        "pixels_N3SS": (colour + noise).clip(0, 255).astype(np.uint8),
        "label_N": label,
        "group_N": group,
        "fold_N": None,
        "fingerprint": "0" * 64,
    }
    return WatchedTiles(**(settings | changes))
