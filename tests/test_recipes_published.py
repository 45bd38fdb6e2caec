"""The recipes of published systems: their sizes, their values, and where each value is from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import resources
from math import sqrt
from typing import Any

import pytest
import yaml
from recipes_of_stages import tile_recipes

from anlage.errors import CheckpointError
from anlage.models.flops import parameter_count
from anlage.recipe import load_recipe
from anlage.training.plan import plan_of
from anlage.training.start import load_teacher, networks_of_run
from anlage.training.tile_config import TilePretrainConfig

# Parameters in millions as printed, and by how much the count may differ: Virchow2 and Mini
# (arXiv:2408.00738), 2G as Zhai et al.'s ViT-G (arXiv:2106.04560); kaiko's as timm's cards of the
# same sizes (21.7 M at 224 px; 304.4 M at 518 px, whose grid has 37 x 37 - 16 x 16 positions
# more); UNI "about 303 M"; GigaPath 1.13 B; Midnight "1.1 B". The last two are ours: DINOv2's S
# with registers (22.1 M at 518 px), and DeiT-Ti (5.7 M with 1,000 classes) with 4 registers.
PARAMETERS = {
    "virchow2": (632, 1),
    "virchow2g": (1843, 1),
    "virchow2g-mini": (22, 0.5),
    "kaiko-vits16-dino": (21.7, 0.05),
    "kaiko-vitl14-dinov2": (304.4 - 1113 * 1024e-6, 0.1),
    "uni": (303, 1),
    "gigapath-tile": (1130, 6),
    "midnight": (1100, 50),
    "midnight-highres": (1100, 50),
    "small-1gpu": (22.1 - 1113 * 384e-6, 0.05),
    "tiny-1gpu": (5.7 - 193e-3, 0.05),
}
# Tiles seen in all steps, where they are stated or follow from what is.
TILES = {
    "virchow2": 2e9,
    "virchow2g": 2e9,
    "uni": 384e6,
    "gigapath-tile": 1_384_860_229,
    "midnight": 384e6,
    "midnight-highres": 120_000 * 1152,
}
# What the papers, their code or notes on their full text say, typed from there and not from the
# recipes.
SAID: dict[str, dict[str, Any]] = {
    "virchow2": {
        "batch_size": 4096,
        "tiles.magnifications": {2.0: 0.2, 1.0: 0.2, 0.5: 0.4, 0.25: 0.2},
        "tiles.min_tissue": 0.65,
        "tiles.balance": {},
        "views.source_px": 392,
        "views.global_px": 224,
        "views.local_px": 98,
        "views.mode": "extended_context",
        "views.vflip_probability": 0.5,
        "views.solarize_probability": (0.0, 0.2),
        "views.stain_jitter": 0.0,
        "model.n_registers": 4,
        "head.n_prototypes": 131_072,
        "patch_head.n_prototypes": 131_072,
        "objective.spread": "kde",
        "objective.spread_weight": 0.05,
        "objective.concentration": 5.0,
        "objective.teacher_temperature.start": 0.07,
        "objective.teacher_temperature.end": 0.04,
        "encoder.pooling": "cls+mean",
    },
    "virchow2g": {
        "batch_size": 3072,
        "views.solarize_probability": (0.0, 0.0),
        "model.n_registers": 8,
        "model.dual_patch_norm": True,
        "model.qk_norm": True,
        "objective.teacher_temperature.start": 0.04,
        "objective.teacher_temperature.end": 0.04,
        "optimizer.kind": "stable_adamw",
        "optimizer.betas": (0.9, 0.95),
        "optimizer.epsilon": 1e-6,
        "optimizer.clip_norm": None,
        "tiles.min_tissue": 0.65,
    },
    "virchow2g-mini": {
        "model.width": 384,
        "model.depth": 12,
        "model.n_heads": 6,
        "model.stochastic_depth": 0.0,
        "head.n_prototypes": 131_072,
    },
    "kaiko-vits16-dino": {
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "tiles.min_tissue": 0.4,
        "views.source_px": 256,
        "views.global_px": 224,
        "model.patch_px": 16,
        "objective.ibot_weight": 0.0,
        "objective.targets": "centering",
    },
    "kaiko-vitl14-dinov2": {
        "mean": (0.5, 0.5, 0.5),
        "tiles.min_tissue": 0.4,
        "model.n_registers": 4,
        "model.patch_px": 14,
        "objective.ibot_weight": 1.0,
        "objective.spread": "koleo",
        "objective.spread_weight": 0.1,
    },
    "uni": {
        "steps": 125_000,
        "batch_size": 3072,
        "patch_head": None,
        "tiles.magnifications": {0.5: 1.0},
        "objective.targets": "centering",
        "objective.spread": "koleo",
        "objective.teacher_temperature.over": 37_500 / 125_000,
        "optimizer.peak_lr": 2e-3,
        "optimizer.min_lr": 1e-6,
        "optimizer.warmup": 12_500 / 125_000,
        "optimizer.freeze_prototypes": 1_250 / 125_000,
        "last_stage.start": 1 - 12_500 / 125_000,
        "last_stage.source_px": 512,
    },
    "gigapath-tile": {
        "batch_size": 384,
        "mean": (0.485, 0.456, 0.406),
        "tiles.magnifications": {0.5: 1.0},
        "tiles.min_tissue": 0.1,
        "views.source_px": 256,
        "model.patch_px": 16,
        "last_stage": None,
    },
    "midnight": {
        "steps": 1_000_000,
        "batch_size": 384,
        "mean": (0.5, 0.5, 0.5),
        "tiles.min_tissue": 0.4,
        "tiles.filters.hsv.min_share": 0.6,
        "tiles.filters.hsv.hue": (90, 180),
        "tiles.filters.hsv.saturation": (8, 255),
        "tiles.filters.hsv.value": (103, 255),
        "views.source_px": 256,
        "objective.spread": "kde",
        "model.patch_px": 14,
    },
    "midnight-highres": {
        "steps": 120_000,
        "batch_size": 1152,
        "views.source_px": 512,
        "views.global_px": 392,
        "views.local_px": 168,
        "tiles.filters.hsv.min_share": 0.6,
        "init.encoder": None,
    },
    "small-1gpu": {
        "objective.spread_weight": 0.005,
        "objective.concentration": 10.0,
        "optimizer.peak_lr": 1e-4,
        "optimizer.layer_decay": 0.7,
        "views.stain_jitter": 0.12,
    },
    "tiny-1gpu": {"model.n_registers": 4, "model.patch_px": 16},
}
# base rate of 1,024 tiles -> the rate of the recipe's batch: DINOv2's rule.
BASE_LR = {
    "virchow2": 2e-4,
    "virchow2g": 2e-4,
    "kaiko-vitl14-dinov2": 2e-4,
    "gigapath-tile": 4e-3,
    "midnight": 3.5e-4,
    "midnight-highres": 1e-4,
}
TAG = r"\[(?:[VST](?::[\w-]+)?|M-hi|M-med|M-lo|I|GAP)\]"
SOURCE = re.compile(rf"\bours\b|METHODS \d(?:\.\d+)?[^#]*{TAG}|METHODS \d(?:\.\d+)?, untagged")


def config_of(name: str) -> TilePretrainConfig:
    return load_recipe(name, TilePretrainConfig)


def text_of(name: str) -> str:
    return (resources.files("anlage.recipes") / f"{name}.yaml").read_text(encoding="utf-8")


def test_all_are_shipped() -> None:
    assert tile_recipes() == {"tiny", *PARAMETERS} == {"tiny", *SAID}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_as_printed(name: str) -> None:
    millions, tolerance = PARAMETERS[name]
    found = parameter_count(config_of(name).model.model_dump()) / 1e6
    assert found == pytest.approx(millions, abs=tolerance)


@pytest.mark.parametrize("name", TILES)
def test_steps_and_batch_make_the_tiles(name: str) -> None:
    config = config_of(name)
    assert abs(config.steps * config.batch_size - TILES[name]) < config.batch_size


@pytest.mark.parametrize("name", BASE_LR)
def test_rates_follow_dinov2s_rule(name: str) -> None:
    config = config_of(name)
    expected = BASE_LR[name] * sqrt(config.batch_size / 1024)
    assert config.optimizer.peak_lr == pytest.approx(expected, rel=0.005)


@pytest.mark.parametrize(("name", "key"), [(n, k) for n, said in SAID.items() for k in said])
def test_values_are_as_said(name: str, key: str) -> None:
    value: Any = config_of(name)
    for part in key.split("."):
        value = getattr(value, part)
    expected = SAID[name][key]
    assert value == (pytest.approx(expected) if isinstance(expected, float) else expected)


def test_highres_reads_the_same_field_at_half_the_mpp() -> None:
    before, after = config_of("midnight"), config_of("midnight-highres")
    halved = {mpp / 2: share for mpp, share in before.tiles.magnifications.items()}
    assert after.tiles.magnifications == halved
    assert after.views.source_px * 0.5 == before.views.source_px
    for part in ("model", "head", "patch_head"):  # or its run could not be taken over
        assert getattr(before, part) == getattr(after, part)


@pytest.mark.parametrize(
    ("name", "share"),
    [("virchow2", 0.4), ("virchow2g", 0.4), ("midnight-highres", 0.4), ("gigapath-tile", 0.3)],
)
def test_large_networks_skip_branches(name: str, share: float) -> None:
    assert config_of(name).model.stochastic_depth == share  # a size named anew forgets it


def test_minis_heads_are_its_teachers() -> None:
    teacher, mini = config_of("virchow2g"), config_of("virchow2g-mini")
    assert (mini.head, mini.patch_head) == (teacher.head, teacher.patch_head)
    assert mini.views == teacher.views


def test_runs_that_stand_for_the_users_are_refused(tmp_path) -> None:
    mini, highres = config_of("virchow2g-mini").distill, config_of("midnight-highres").init
    assert mini is not None
    assert mini.run is not None
    assert highres.run is not None
    with pytest.raises(CheckpointError, match=r"RUN_OF_VIRCHOW2G.*has no checkpoint"):
        load_teacher(tmp_path / mini.run)
    with pytest.raises(CheckpointError, match=r"RUN_OF_MIDNIGHT.*has no checkpoint"):
        networks_of_run(tmp_path / highres.run)
    for name, key in (("virchow2g-mini", "distill.run"), ("midnight-highres", "init.run")):
        assert f"# Needs --set {key}=RUN." in text_of(name)


def leaves(node: yaml.Node, opened: tuple[int, ...] = (), path: str = "") -> Iterator[Any]:
    """Dotted key of each value, and the lines that it and the blocks around it begin on.

    What stands in braces on one line, or has numbers as keys, is one value.
    """
    if isinstance(node, yaml.MappingNode) and not node.flow_style:
        for key, value in node.value:
            where = f"{path}.{key.value}".lstrip(".")
            yield from leaves(value, (*opened, key.start_mark.line), where)
    else:
        yield path, opened


def unexplained(text: str) -> list[str]:
    """Keys of a recipe whose value has no source in a comment on its line or its block's."""
    comments = [line.partition(" #")[2] for line in text.splitlines()]
    found = leaves(yaml.compose(text, Loader=yaml.SafeLoader))
    return [key for key, opened in found if not any(SOURCE.search(comments[n]) for n in opened)]


@pytest.mark.parametrize("name", [*PARAMETERS, "gigapath-slide"])
def test_every_value_has_its_source_beside_it(name: str) -> None:
    assert unexplained(text_of(name)) == []


def test_a_value_without_its_source_is_found() -> None:
    text = (
        "a: 1  # ours\n"
        "b:\n  c: 2\n  d: {x: 1}  # METHODS 1.3 [S]\n"
        "e:  # METHODS 5 [V:dinov2]\n  f: 3\n"
        "g: 4  # METHODS 5\n"
        "h: 5  # published\n"
        "i: 6  # METHODS 1.3 [X]\n"
        "# ours\n"
        "j: 7\n"
    )
    assert unexplained(text) == ["b.c", "g", "h", "i", "j"]


@pytest.mark.parametrize("name", PARAMETERS)
def test_views_are_whole_patches(name: str) -> None:
    """98 px for patches of 14, 96 px for patches of 16; the config refuses others."""
    config = config_of(name)
    if name != "midnight-highres":
        assert config.views.local_px == {14: 98, 16: 96}[config.model.patch_px]


@pytest.mark.parametrize("name", PARAMETERS)
def test_no_part_holds_one_tile_alone(name: str) -> None:
    config = config_of(name)
    assert config.batch_size // config.accumulate >= 2


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_part_fits_one_gpu_of_80_gb_by_the_estimate(name: str) -> None:
    stages = plan_of(config_of(name)).stages
    assert max(stage.memory.total for stage in stages) < 80e9
