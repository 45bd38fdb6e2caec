"""The tiny recipe, smaller: every part of it, seconds a run."""

from __future__ import annotations

from anlage.recipe import load_recipe
from anlage.training.tile_config import TilePretrainConfig

MICRO = (
    *("batch_size=4", "checkpoint_every=5", "views.source_px=48", "views.global_px=32"),
    *(
        "encoder.tile_px=32",
        "views.local_px=16",
        "views.n_local=2",
        "views.blur_kernel_px=5",
        "model.image_px=32",
    ),
    *("model.width=24", "model.depth=2", "model.n_heads=2", "model.n_registers=1"),
    *("model.stochastic_depth=0.3", "head.n_prototypes=32", "head.hidden=16"),
    "head.bottleneck=8",
)


def micro_config(*overrides: str) -> TilePretrainConfig:
    """The tiny recipe, smaller: every part of it, seconds a run."""
    return load_recipe("tiny", TilePretrainConfig, overrides=(*MICRO, *overrides))
