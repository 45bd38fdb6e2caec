"""An encoder small enough to run in any test, and random tiles for it."""

from __future__ import annotations

import numpy as np
import torch

from anlage.encoders.tile_encoder import EncoderConfig, TileEncoder
from anlage.models.vit import VisionTransformer

ARCHITECTURE = {
    "image_px": 32,
    "patch_px": 8,
    "width": 24,
    "depth": 2,
    "n_heads": 3,
    "n_registers": 2,
    "layer_scale": 1.0,
    "stochastic_depth": 0.3,
}
MEAN, STD = (0.7, 0.5, 0.6), (0.2, 0.25, 0.3)


def make_config(**changes) -> EncoderConfig:
    settings = {"architecture": ARCHITECTURE, "tile_px": 32, "mpp": 0.5, "mean": MEAN, "std": STD}
    return EncoderConfig(**(settings | changes))


def make_encoder(seed: int = 0, **changes) -> TileEncoder:
    config = make_config(**changes)
    torch.manual_seed(seed)
    return TileEncoder(config, VisionTransformer(**config.architecture))


def make_pixels(n_tiles: int, seed: int = 0, size_px: int = 32) -> torch.Tensor:
    generator = np.random.default_rng(seed)
    shape = (n_tiles, 3, size_px, size_px)
    return torch.from_numpy(generator.integers(0, 256, shape, dtype=np.uint8))
