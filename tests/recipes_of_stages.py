"""Which stage a recipe of the package is for; a recipe that stands nowhere is of the tile stage."""

from __future__ import annotations

from pydantic import BaseModel

from anlage.recipe import recipe_names
from anlage.training.finetuning.config import FinetuneConfig
from anlage.training.slide_pretraining.config import SlidePretrainConfig
from anlage.training.tile_config import TilePretrainConfig

OTHER_STAGES: dict[str, type[BaseModel]] = {
    "gigapath-slide": SlidePretrainConfig,
    "tiny-slide": SlidePretrainConfig,
    "abmil": FinetuneConfig,
    "gigapath-mutation": FinetuneConfig,
    "gigapath-panda": FinetuneConfig,
    "gigapath-subtyping": FinetuneConfig,
    "uni-abmil": FinetuneConfig,
}


def stage_of(recipe: str) -> type[BaseModel]:
    """The configuration that a recipe fills."""
    return OTHER_STAGES.get(recipe, TilePretrainConfig)


def tile_recipes() -> set[str]:
    """Names of the recipes of ``anlage pretrain tile``."""
    return {name for name in recipe_names() if stage_of(name) is TilePretrainConfig}
