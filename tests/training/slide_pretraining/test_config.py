"""What a slide-pretraining recipe may say, and what the published one says."""

from __future__ import annotations

from typing import Any

import pytest

from anlage.errors import RecipeError
from anlage.models.without_weights import without_weights
from anlage.recipe import load_recipe
from anlage.training.schedule import learning_rate
from anlage.training.slide_pretraining.config import SlidePretrainConfig
from anlage.training.slide_pretraining.networks import SlideAutoencoder

# METHODS 3.1, 3.3 and 3.4, typed from there and not from the recipe.
SAID = {
    "epochs": 30,
    "batch_size": 4 * 64,
    "bags.grid_um": 256 * 0.5,
    "views.crop": 0.875,
    "views.n_grid": 1000,
    "views.hflip_probability": 0.5,
    "model.width": 768,
    "model.depth": 12,
    "model.n_heads": 16,
    "model.segments": (1024, 5792, 32768, 185363, 1048576),
    "model.dilations": (1, 2, 4, 8, 16),
    "model.head_phase": "torchscale",
    "model.dropout": 0.25,
    "model.stochastic_depth": 0.1,
    "optimizer.peak_lr": 5e-4,
    "optimizer.warmup_epochs": 1,
}


def config_of(*overrides: str, recipe: str = "tiny-slide") -> SlidePretrainConfig:
    return load_recipe(recipe, SlidePretrainConfig, overrides=overrides)


@pytest.mark.parametrize("key", SAID)
def test_values_are_as_said(key: str) -> None:
    value: Any = config_of(recipe="gigapath-slide")
    for part in key.split("."):
        value = getattr(value, part)
    assert value == SAID[key]


def test_the_published_encoder_has_its_parameters() -> None:
    config = config_of(recipe="gigapath-slide")
    with without_weights():
        network = SlideAutoencoder(config, input_width=1536)
    n_parameters = sum(p.numel() for p in network.encoder.parameters())
    assert n_parameters == pytest.approx(86.3e6, abs=0.05e6)  # the issue's, of the published code


def test_steps_and_warm_up_follow_from_the_bags() -> None:
    config = config_of(recipe="gigapath-slide")
    assert config.steps(171_189) == 20_062  # 30 x 171,189 / 256, rounded up
    steps = config.steps(25_600)  # 100 steps an epoch
    rates = [learning_rate(config.optimisation, s, steps=steps) for s in (0, 50, 100, steps - 1)]
    assert rates[:3] == pytest.approx([0, 2.5e-4, 5e-4])
    assert rates[3] < 1e-8


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("accumulate=3", "needs to divide batch_size=8"),
        ("optimizer.warmup_epochs=100", "below epochs=100"),
        ("optimizer.min_lr=1", "at most optimizer.peak_lr"),
        ("decoder.width=66", "multiple of 4 and of n_heads=4"),
        ("model.n_heads=3", "multiple of 4 and of n_heads=3"),
        ("model.dilations=[1]", "one value a branch"),
        ("model.size=huge", "needs one of tiny, base, gigapath; got 'huge'"),
        ("held_out.split=test", "share or split"),
        ("watch.patience=2", "patience needs every"),
        ("engine.kind=fsdp2", "'auto', 'single' or 'ddp'"),
        ("bags.max_tiles=1", "greater than or equal to 2"),
        ("mask_ratio=1", "less than 1"),
        ("mask_ration=0.5", "did you mean 'mask_ratio'"),
    ],
)
def test_unfit_values_are_refused(override: str, told: str) -> None:
    more = ("watch.every=null",) if "patience" in override else ()
    with pytest.raises(RecipeError, match=told):
        config_of(override, *more)


@pytest.mark.parametrize(
    "held", [("held_out.share=0.1",), ("held_out.share=0", "held_out.split=t")]
)
def test_bags_held_out_and_never_measured_are_refused(held: tuple[str, ...]) -> None:
    with pytest.raises(
        RecipeError, match=r"held_out keeps bags .* never measured: set watch.every"
    ):
        config_of(*held, "watch.every=null")
    assert config_of("held_out.share=0", "watch.every=null").watch.every is None


def test_the_published_recipe_measures_what_it_holds_out() -> None:
    config = config_of(recipe="gigapath-slide")
    assert config.held_out.share > 0
    assert config.watch.every == 200
