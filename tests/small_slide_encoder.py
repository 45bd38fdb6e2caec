"""A slide encoder small enough for any test, for the bags of ``some_bags``."""

from __future__ import annotations

from typing import Any

import torch
from some_bags import ATTRIBUTES

from anlage.encoders.slide_encoder import (
    OpenSlideEncoder,
    SlideEncoderConfig,
    TileEncoderFacts,
)
from anlage.models.slide_encoder import SlideEncoder

ARCHITECTURE = {
    "input_width": 12, "width": 16, "depth": 2, "n_heads": 4, "segments": [8, 32],
    "dilations": [1, 2], "dropout": 0.1,
}  # fmt: skip
TILE_ENCODER = TileEncoderFacts(
    name="anlage-tiny", fingerprint=ATTRIBUTES.encoder_fingerprint, mpp=0.5, tile_px=224, width=12
)


def slide_config(**changes: Any) -> SlideEncoderConfig:
    """The description of a small slide encoder."""
    fields = {"architecture": ARCHITECTURE, "grid_um": 112.0, "tile_encoder": TILE_ENCODER}
    return SlideEncoderConfig(**{**fields, **changes})


def make_slide_encoder(*, seed: int = 0, **changes: Any) -> OpenSlideEncoder:
    """A small slide encoder with random weights."""
    config = slide_config(**changes)
    network = SlideEncoder(**config.architecture)
    network.initialise(torch.Generator().manual_seed(seed))
    return OpenSlideEncoder("small", config, network)
