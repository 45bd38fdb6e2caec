"""Small slide models and encoders in folders, and bags and slides that fit them, for tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from small_catalogue import make_catalogue
from some_bags import ATTRIBUTES

from anlage.bags.store import Bag, bag_place, write_bag
from anlage.encoders.slide_encoder import SlideEncoderConfig, TileEncoderFacts, save_slide_encoder
from anlage.encoders.slide_model_folder import SlideModelConfig, SlideTask, save_slide_model
from anlage.models.slide_encoder import SlideEncoder
from anlage.models.slide_model import SlideModel
from anlage.slides.catalogue import Catalogue

WIDTH, TILE_PX, PLANTED = 8, 32, 7
MADE_FOR = TileEncoderFacts(
    name="anlage-tiny", fingerprint="e" * 64, mpp=1.0, tile_px=TILE_PX, width=WIDTH
)
ENCODER = {"width": 16, "depth": 2, "n_heads": 2, "segments": [8, 32], "dilations": [1, 2]}


def slides_and_bags(folder: Path, **changes: object) -> tuple[Catalogue, Path]:
    """Slide ``a`` at 1 mpp, 256 x 192 px, and its bag of 48 tiles; tile 7 has a feature of its own.

    The corner of tile 7 is (224, 0).
    """
    catalogue = make_catalogue(folder, 1)
    row = catalogue.row("a")
    corners = [[x, y] for y in range(0, 192, TILE_PX) for x in range(0, 256, TILE_PX)]
    features = np.random.default_rng(0).normal(0, 0.1, (len(corners), WIDTH))
    features[PLANTED, 0] = 5
    made = replace(
        ATTRIBUTES,
        slide_fingerprint=row.fingerprint,
        mpp=1.0,
        slide_mpp=1.0,
        slide_width_px=256,
        slide_height_px=192,
        tile_px=TILE_PX,
        stride_px=TILE_PX,
    )
    bag = Bag("a", features.astype(np.float16), np.array(corners), replace(made, **changes))
    write_bag(bag_place(folder / "bags", "a"), bag)
    return catalogue, folder / "bags"


def save_model(folder: Path, *, n_outputs: int = 1, **architecture: object) -> SlideModel:
    """A model of freshly drawn weights."""
    settings = {"input_width": WIDTH, "n_outputs": n_outputs} | architecture
    torch.manual_seed(0)
    return _saved(folder, SlideModel(**settings), settings)


def save_planted(folder: Path) -> SlideModel:
    """A model whose attention is softmax(3 tanh(first feature)): it looks at the planted tile."""
    pooling = {"kind": "abmil", "width": None, "hidden": 2}
    settings = {"input_width": WIDTH, "n_outputs": 1, "pooling": pooling}
    network = SlideModel(**settings)
    attention = network.pooling.attention
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.zero_()
        attention.content.weight[0, 0] = 1
        attention.score.weight[0, 0] = 3
    return _saved(folder, network, settings)


def _saved(folder: Path, network: SlideModel, settings: dict[str, object]) -> SlideModel:
    n_outputs = network.n_outputs
    classes = ("no", "yes") if n_outputs == 1 else tuple(f"class {n}" for n in range(n_outputs))
    kind = "binary" if n_outputs == 1 else "multi_class"
    task = SlideTask(kind=kind, target=("label",), classes=classes)
    config = SlideModelConfig(
        architecture=settings, task=task, tile_encoder=MADE_FOR, grid_um=float(TILE_PX)
    )
    save_slide_model(folder, network, config)
    return network


def save_encoder(folder: Path, **changes: object) -> SlideEncoder:
    """A slide encoder of two blocks and two heads."""
    architecture = {"input_width": WIDTH} | ENCODER | changes
    torch.manual_seed(0)
    network = SlideEncoder(**architecture)
    config = SlideEncoderConfig(
        architecture=architecture, grid_um=float(TILE_PX), tile_encoder=MADE_FOR
    )
    save_slide_encoder(folder, network, config)
    return network
