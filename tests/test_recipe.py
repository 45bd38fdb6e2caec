"""Recipes: extends, overrides, and refusals that name the nearest key."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict
from recipes_of_stages import stage_of

from anlage.errors import RecipeError
from anlage.recipe import load_recipe, merged, recipe_names
from anlage.training.network_config import Architecture
from anlage.training.tile_config import TilePretrainConfig


class Optimizer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    peak_lr: float
    betas: tuple[float, float] = (0.9, 0.999)


class Small(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    steps: int
    optimizer: Optimizer


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


def test_every_recipe_of_the_package_is_valid() -> None:
    assert "tiny" in recipe_names()
    for name in recipe_names():
        load_recipe(name, stage_of(name))


def test_extends_and_overrides_win_in_turn(tmp_path: Path) -> None:
    write(tmp_path, "parent", "steps: 1\noptimizer: {peak_lr: 0.5, betas: [0.1, 0.2]}\n")
    child = write(tmp_path, "child", "extends: parent\noptimizer: {peak_lr: 0.25}\n")
    config = load_recipe(child, Small, overrides=["steps=7", "optimizer.peak_lr=1e-4"])
    assert config.steps == 7
    assert config.optimizer.peak_lr == 1e-4
    assert config.optimizer.betas == (0.1, 0.2)


def test_a_shipped_recipe_can_be_extended(tmp_path: Path) -> None:
    child = write(tmp_path, "mine", "extends: tiny\nsteps: 3\n")
    config = load_recipe(child, TilePretrainConfig)
    assert config.steps == 3
    assert config.model == load_recipe("tiny", TilePretrainConfig).model


def test_merged_replaces_leaves_and_lists() -> None:
    below = {"a": {"x": 1, "y": [1, 2]}, "b": 1}
    assert merged(below, {"a": {"y": [3]}}) == {"a": {"x": 1, "y": [3]}, "b": 1}
    assert below == {"a": {"x": 1, "y": [1, 2]}, "b": 1}


def test_shares_of_resolutions_replace_those_of_the_parent(tmp_path: Path) -> None:
    """A recipe that says 0.5 mpp alone must not also train at its parent's 1 mpp."""
    child = write(tmp_path, "mine", "extends: tiny\ntiles: {magnifications: {0.5: 2.0}}\n")
    tiles = load_recipe(child, TilePretrainConfig).tiles
    assert tiles.magnifications == {0.5: 2.0}
    assert tiles.split == "train"
    override = ["tiles.magnifications={0.25: 1}"]
    assert load_recipe("tiny", TilePretrainConfig, overrides=override).tiles.magnifications == {
        0.25: 1.0
    }


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "optimizer.peek_lr=1",
            r"unknown key 'optimizer.peek_lr'; did you mean 'optimizer.peak_lr'",
        ),
        ("peak_lr=1", "did you mean 'optimizer.peak_lr'"),
        ("steps=many", "steps: .*got 'many'"),
        ("steps", "dotted.key=value"),
        ("=3", "dotted.key=value"),
        ("steps=[1", "no YAML value"),
    ],
)
def test_wrong_overrides_are_refused(tmp_path: Path, override: str, said: str) -> None:
    recipe = write(tmp_path, "r", "steps: 1\noptimizer: {peak_lr: 0.5}\n")
    with pytest.raises(RecipeError, match=said):
        load_recipe(recipe, Small, overrides=[override])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps: 1\n", "needs the key 'optimizer'"),
        ("- 1\n- 2\n", "needs keys and values"),
        ("steps: [1\n", "is not YAML"),
        ("extends: nobody\n", "known recipes are"),
    ],
)
def test_wrong_recipes_are_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe(write(tmp_path, "r", text), Small)


def test_a_circle_of_extends_is_refused(tmp_path: Path) -> None:
    a = write(tmp_path, "a", "extends: b\n")
    write(tmp_path, "b", "extends: a\n")
    with pytest.raises(RecipeError, match="circle"):
        load_recipe(a, Small)


def test_an_unknown_recipe_lists_the_known() -> None:
    with pytest.raises(RecipeError, match="known recipes are .*tiny"):
        load_recipe("virchov2", TilePretrainConfig)


def test_contradictions_are_refused() -> None:
    with pytest.raises(RecipeError, match="multiple of model.patch_px=8"):
        load_recipe("tiny", TilePretrainConfig, overrides=["views.global_px=60"])
    with pytest.raises(RecipeError, match="divide model.width"):
        load_recipe("tiny", TilePretrainConfig, overrides=["model.n_heads=5"])
    with pytest.raises(RecipeError, match="each the other's target"):
        load_recipe(
            "tiny",
            TilePretrainConfig,
            overrides=[
                *("views.n_global=1", "views.global_blur_probability=[1.0]"),
                "views.solarize_probability=[0.0]",
            ],
        )


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=-1", "seed: .*greater than or equal to 0"),
        ("seed=4294967296", "seed: .*less than or equal to 4294967295"),
        ("std=[0, 1, 1]", "std.0: .*greater than 0"),
        ("mean=[.nan, 0, 0]", "mean.0: .*finite"),
        ("optimizer.peak_lr=.inf", "optimizer.peak_lr: .*finite"),
        ("optimizer.betas=[0.9, 1.0]", "optimizer.betas.1: .*less than 1"),
        ("optimizer.teacher_momentum.end=2", "teacher_momentum needs to stay within 0 and 1"),
        ("objective.mask_ratio=[0.5, 0.1]", "mask_ratio needs 0 < smallest <= largest"),
        ("objective.teacher_temperature.start=0", "teacher_temperature needs to stay above 0"),
        ("model.image_px=60", "image_px needs a multiple of patch_px=8"),
        ("tiles.per_region=1000000", "tiles.per_region: .*less than or equal to 256"),
        ("tiles.magnifications={1.0: nan}", "tiny: tiles.magnifications.1.0: .*finite.*'nan'$"),
        ("tiles.magnifications={low: 2, high: 1}", "tiny: tiles.magnifications: needs low < high"),
        ("tiles.magnifications={low: 2, hgh: 4}", "unknown key 'tiles.magnifications.hgh'"),
        ("tiles.magnifications={low: 1, high: 2}", r"encoder.mpp needs a value .{,150} \.\.\.$"),
    ],
)
def test_values_out_of_range_are_refused_before_a_run_begins(override: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe("tiny", TilePretrainConfig, overrides=[override])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["last_stage.source=512"], "did you mean 'last_stage.source_px'"),
        (["patch_head.n_prototype=8"], "did you mean 'patch_head.n_prototypes'"),
        (["objective.gram.stat=0.5"], "did you mean 'objective.gram.start'"),
        (["model.size=vit-s15"], "vit-s1"),
        (["accumulate=5"], "accumulate=5 needs to divide batch_size=32"),
        (["batch_size=1"], "batch_size: "),
        (["views.source_px=48"], r"views.source_px=48 needs at least views.global_px=64"),
        (["objective.dino_weight=0", "objective.ibot_weight=0"], "needs to be above 0"),
        (
            ["objective.ibot_weight=0", "patch_head={n_prototypes: 8}"],
            "patch_head needs objective.ibot_weight above 0",
        ),
        (["optimizer.kind=stable_adamw"], "clip_norm needs to be null with stable_adamw"),
        (["optimizer.cooldown=0.1"], "cooldown needs schedule inverse_sqrt or constant"),
        (["optimizer.schedule=inverse_sqrt", "optimizer.warmup=0"], "warmup needs to be above 0"),
        (["optimizer.min_lr=1"], "min_lr=1 needs to be at most peak_lr"),
        (["init={encoder: a, run: b}"], "needs encoder or run; got both"),
        (["init.freeze_encoder=0.1"], "freeze_encoder needs an encoder or a run"),
        (["distill={}"], "needs either run"),
        (["distill={run: a}", "objective.gram={start: 0.5}"], "gram needs self-distillation"),
        (["watch={patience: 2, keep_best: null}"], "patience needs keep_best"),
        (
            ["last_stage={start: 0.9, source_px: 128, global_px: 100, local_px: 32}"],
            "last_stage.global_px needs a multiple of model.patch_px=8",
        ),
        (
            ["last_stage={start: 0.9, source_px: 64, global_px: 96, local_px: 32}"],
            "last_stage.source_px=64 needs at least",
        ),
    ],
)
def test_contradictions_are_refused_before_anything_runs(overrides: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe("tiny", TilePretrainConfig, overrides=overrides)


def test_a_size_by_name_fills_in_its_fields_and_is_changed_by_those_beside_it(
    tmp_path: Path,
) -> None:
    text = "extends: tiny\nmodel: {size: vit-s16, n_registers: 2}\n"
    child = write(tmp_path, "mine", text)
    tree = load_recipe(child, TilePretrainConfig, overrides=["views.local_px=32"]).model
    assert (tree.width, tree.depth, tree.n_heads) == (384, 12, 6)  # none of tiny's fields is left
    assert (tree.n_registers, tree.linear_std) == (2, 0.02)
    config = Architecture.model_validate({"size": "vit-s16", "n_registers": 2})
    assert (config.width, config.depth, config.patch_px, config.n_registers) == (384, 12, 16, 2)
    assert "size" not in config.model_dump()


def test_a_size_leaves_the_overrides_beside_it_in_whatever_order_they_come() -> None:
    overrides = ["model.stochastic_depth=0.3", "model.size=vit-s16", "steps=7"]
    for order in (overrides, overrides[::-1]):
        config = load_recipe("tiny", TilePretrainConfig, overrides=[*order, "model.size=vit-s8"])
        assert (config.model.stochastic_depth, config.model.patch_px) == (0.3, 8)
        assert config.model.width == 384
