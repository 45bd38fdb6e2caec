"""Small encoders whose weights are of ordinary size everywhere, so that every tensor tells."""

from __future__ import annotations

import torch
from published_weights import randomised
from small_encoder import ARCHITECTURE, make_config

from anlage.encoders.tile_encoder import TileEncoder
from anlage.models.vit import VisionTransformer

VARIANTS = {
    "registers and LayerScale": {},
    "plain": {"n_registers": 0, "layer_scale": None},
    "SwiGLU": {"feed_forward": "swiglu", "n_registers": 0, "layer_scale": None},
    "SwiGLU, registers, wide": {"feed_forward": "swiglu", "mlp_ratio": 5.25},
    "odd mlp ratio": {"mlp_ratio": 2.7},
}


def weighty_encoder(pooling: str = "cls", tile_px: int = 32, **architecture) -> TileEncoder:
    provenance = architecture.pop("provenance", {})
    architecture = {**ARCHITECTURE, **architecture}
    config = make_config(
        architecture=architecture, pooling=pooling, tile_px=tile_px, provenance=provenance
    )
    torch.manual_seed(0)
    return TileEncoder(config, randomised(VisionTransformer(**architecture)))
