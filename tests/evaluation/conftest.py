"""A small real encoder and labelled tiles that a test makes itself."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from anlage.encoders.tile_encoder import EncoderConfig, TileEncoder
from anlage.models.vit import VisionTransformer


@pytest.fixture
def make_encoder():
    def make(*, tile_px=32, mpp=1.0, provenance=None, seed=0):
        architecture = {
            **{"image_px": tile_px, "patch_px": 16, "width": 16, "depth": 1, "n_heads": 2}
        }
        model = VisionTransformer(**architecture)
        model.initialise(torch.Generator().manual_seed(seed))
        config = EncoderConfig(
            architecture=architecture,
            tile_px=tile_px,
            mpp=mpp,
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
            provenance=provenance or {},
        )
        return TileEncoder(config, model)

    return make


@pytest.fixture
def make_tiles(tmp_path, generator):
    """Write a CSV of tiles whose colour tells their class, ``per_case`` of each case."""

    def make(*, n_cases=8, per_case=4, size_px=32, columns=("case", "mpp"), name="labels.csv"):
        folder = tmp_path / "data"
        folder.mkdir(exist_ok=True)
        rows = []
        for case in range(n_cases):
            label = ("pink", "violet")[case % 2]
            for tile in range(per_case):
                file = f"case{case}_{tile}.png"
                noise = generator.integers(0, 60, (size_px, size_px, 3))
                colour = {"pink": (180, 60, 90), "violet": (90, 40, 180)}[label]
                Image.fromarray((noise + colour).clip(0, 255).astype(np.uint8)).save(folder / file)
                every = {"case": f"c{case}", "mpp": "1.0", "fold": str(case // 2 % 2)}
                every["split"] = "test" if case >= n_cases // 2 else "train"
                rows.append({"file": file, "label": label} | {c: every[c] for c in columns})
        write_rows(folder / name, rows)
        return folder / name

    return make


def write_rows(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def change_rows():
    """Rewrite a CSV after a function has changed its rows in place or given new ones."""

    def change(path, edit):
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        write_rows(path, edit(rows) or rows)
        return path

    return change
