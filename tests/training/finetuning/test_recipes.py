"""The fine-tuning recipes: what the papers and their code say, and where each value is from."""

from __future__ import annotations

from importlib import resources
from typing import Any

import pytest
from recipes_of_stages import OTHER_STAGES
from test_recipes_published import unexplained

from anlage.cli.finetune import begin_with
from anlage.errors import RecipeError
from anlage.models.dilated_attention import gigapath_branches
from anlage.recipe import load_recipe
from anlage.training.finetuning.config import FinetuneConfig

# Typed from METHODS 3.5, 4.3 (5) and the open scripts, not from the recipes.
SAID: dict[str, dict[str, Any]] = {
    "gigapath-mutation": {
        "epochs": 20,
        "batch_size": 32,
        "accumulate": 32,
        "task.unit": "largest_slide",
        "task.target": ("EGFR", "FAT1", "KRAS", "LRP1B", "TP53"),
        "model.slide_encoder.init": "prov-gigapath-slide",
        "model.route": "pool",
        "model.shortcut": False,
        "tiles.shuffle": True,
        "optimizer.base_lr": 2e-3,
        "optimizer.weight_decay": 0.01,
        "optimizer.min_lr": 1e-6,
        "optimizer.warmup_epochs": 1,
        "folds.kind": "random",
        "folds.n": 10,
        "choice.keep": "last",
    },
    "gigapath-subtyping": {
        "epochs": 20,
        "task.kind": "multi_class",
        "model.shortcut": True,
        "optimizer.base_lr": 4e-3,
        "optimizer.weight_decay": 1e-3,
        "optimizer.layer_decay": 0.9,
        "folds.n": 10,
    },
    "gigapath-panda": {
        "epochs": 5,
        "task.classes": ("0", "1", "2", "3", "4", "5"),
        "model.route": "cls",
        "model.layers": (11,),
        "model.slide_encoder.dropout": 0.1,
        "model.slide_encoder.stochastic_depth": 0.0,
        "optimizer.weight_decay": 0.05,
        "optimizer.layer_decay": 0.95,
        "folds.kind": "column",
    },
    "uni-abmil": {
        "epochs": 20,
        "batch_size": 1,
        "model.slide_encoder": None,
        "model.pooling": {
            "kind": "gated_abmil",
            "width": 512,
            "hidden": 384,
            "input_dropout": 0.1,
            "dropout": 0.25,
        },
        "optimizer.peak_lr": 1e-4,
        "optimizer.weight_decay": 1e-5,
        "folds.n": 5,
        "choice.by": "loss",
    },
}


def config_of(name: str, *overrides: str) -> FinetuneConfig:
    return load_recipe(name, FinetuneConfig, overrides=overrides)


def test_all_are_of_this_stage() -> None:
    ours = {name for name, stage in OTHER_STAGES.items() if stage is FinetuneConfig}
    assert ours == {"abmil", *SAID}


@pytest.mark.parametrize(("name", "key"), [(n, k) for n, said in SAID.items() for k in said])
def test_values_are_as_said(name: str, key: str) -> None:
    value: Any = config_of(name)
    for part in key.split("."):
        value = getattr(value, part)
    assert value == SAID[name][key]


@pytest.mark.parametrize("name", SAID)
def test_every_value_has_its_source_beside_it(name: str) -> None:
    text = (resources.files("anlage.recipes") / f"{name}.yaml").read_text(encoding="utf-8")
    assert unexplained(text) == []


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("gigapath-mutation", 2.5e-4),
        ("gigapath-subtyping", 5e-4),
        ("gigapath-panda", 2.5e-4),
        ("uni-abmil", 1e-4),
    ],
)
def test_rates_are_those_of_one_slide_and_32_parts(name: str, rate: float) -> None:
    """``lr = blr * batch_size * gc / 256`` in their main.py."""
    config = config_of(name)
    assert config.optimizer.rate(config.batch_size) == pytest.approx(rate)


def test_panda_inherits_no_pooling_and_another_route_has_one() -> None:
    assert config_of("gigapath-panda").model.pooling is None
    pooled = config_of("gigapath-panda", "model.route=pool", "model.layers=null")
    assert pooled.model.pooling == {"kind": "gated_abmil"}
    again = FinetuneConfig.model_validate(pooled.model_dump(mode="json"))
    assert again == pooled


@pytest.mark.parametrize("name", [name for name in SAID if name.startswith("gigapath")])
@pytest.mark.parametrize("changes", [(), ("model.slide_encoder.frozen=true",)])
def test_a_slide_encoder_of_the_command_line_changes_nothing_else(name, changes) -> None:
    before = config_of(name, *changes).model.slide_encoder
    after = config_of(name, *changes, *begin_with("folder/encoder")).model.slide_encoder
    assert before is not None
    assert before.dropout == 0.1
    assert after == before.model_copy(update={"init": "folder/encoder"})


def test_a_slide_encoder_of_the_command_line_takes_the_place_of_random_weights() -> None:
    own = ("model.slide_encoder={size: tiny, dropout: 0.2}",)
    found = config_of("abmil", *own, *begin_with("folder/encoder")).model.slide_encoder
    assert found is not None
    assert (found.init, found.size, found.dropout) == ("folder/encoder", None, 0.2)


def test_pandas_segments_are_those_of_its_largest_slide() -> None:
    encoder = config_of("gigapath-panda").model.slide_encoder
    assert encoder is not None
    assert encoder.segments == tuple(b.segment for b in gigapath_branches(250_000))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("optimizer.base_lr=1e-3",), "peak_lr, or base_lr"),
        (("task.kind=survival_cox",), "time and event"),
        (("task.threshold=10", "task.positive=a"), "threshold is of kind=binary"),
        (("task.kind=multi_class", "task.positive=a"), "positive is of binary"),
        (("task.classes=[a, b, c]",), "binary: two"),
        (("accumulate=3",), "needs to divide batch_size=8"),
        (("choice.keep=last",), "patience needs keep=best"),
        (("model.route=cls",), "needs a slide_encoder"),
        (("model.pooling={kind: max}",), "one of the kinds"),
        (("model.pooling={kind: mean, hidden: 3}",), "does not take these settings"),
        (("model.instance_weight=0.3",), "clam_sb and clam_mb"),
        (("folds.kind=column",), "need each other"),
        (("folds.n=1",), "needs n of 2 or more"),
        (("optimizer.warmup_epochs=20",), "less than epochs=20"),
        (("optimizer.min_lr=1",), "at most the rate"),
        (("model.slide_encoder={init: a, size: tiny}",), "brings its size"),
        (("task.unit=patients",), "task.unit"),
        (("model.slide_encoder={frozen: true}",), "needs init, or a size of tiny, base, gigapath"),
        (("model.slide_encoder={size: tiny, frozen: true}",), "not worth keeping"),
        (
            ("task={kind: survival_cox, target: null, time: t, event: e}", "batch_size=1"),
            "compares the bags of a step",
        ),
        (
            (
                "task={kind: regression}",
                "model={instance_weight: 0.3, pooling: {kind: clam_sb}}",
            ),
            "of binary and multi_class tasks",
        ),
        (("task.targt=a",), "did you mean 'task.target'"),
        (
            ("model={slide_encoder: {size: tiny}, route: cls, pooling: {kind: clam_sb}}",),
            "pooling is of route=pool; got route=cls",
        ),
        (
            (
                "model={slide_encoder: {size: tiny}, route: mean, pooling: null}",
                "model.instance_weight=0.3",
            ),
            "instance_weight is of the poolings clam_sb and clam_mb",
        ),
        (("model.pooling={kind: abmil, input_width: 3}",), "input_width follows from the bags"),
        (("model.pooling={kind: clam_sb, n_classes: 3}",), "n_classes follows from the bags"),
        (("model.pooling={kind: [a]}",), "one of the kinds"),
        (("model.pooling=[3]",), "model.pooling"),
        (("model.slide_encoder={init: a, grid_um: 64.0}",), "brings its grid"),
        (("task.penalty=huber",), "penalty is of kind=regression; got kind=binary"),
        (("task.link=cumulative",), "link is of kind=ordinal; got kind=binary"),
        (("task.censored_weight=0.6",), "censored_weight is of kind=survival_discrete"),
        (("task.ties=breslow",), "ties is of kind=survival_cox; got kind=binary"),
        (("recompute=true",), "recompute is of the slide encoder"),
        (
            ("task={kind: regression, class_weights: balanced}",),
            "class_weights are of classes, grades and labels",
        ),
        (
            (
                "task={kind: survival_cox, target: null, time: t, event: e}",
                "task.class_weights=balanced",
            ),
            "class_weights are of classes, grades and labels",
        ),
    ],
)
def test_contradictions_are_refused(overrides: tuple[str, ...], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        config_of("abmil", *overrides)
