"""What a fine-tuning run refuses or reads before its first step."""

from __future__ import annotations

from pathlib import Path

import pytest
from marked_bags import MarkedSlides, mark_of_class, two_classes, write_marked

from anlage.encoders import precision
from anlage.errors import RecipeError
from anlage.recipe import load_recipe
from anlage.training.finetune_config import FinetuneConfig
from anlage.training.finetune_preparation import prepare


def config_of(*overrides: str) -> FinetuneConfig:
    changes = ("task.positive=mutated", "folds.n=2", *overrides)
    return load_recipe("abmil", FinetuneConfig, overrides=changes)


@pytest.fixture
def slides(tmp_path: Path) -> MarkedSlides:
    return write_marked(tmp_path, two_classes(12), mark_of_class)


def test_arithmetic_that_the_device_lacks_is_refused(slides, monkeypatch) -> None:
    monkeypatch.setattr(precision, "has_native_bf16", lambda device: False)
    with pytest.raises(RecipeError, match="precision: needs bf16 .* cpu .* precision=auto"):
        prepare(config_of("precision=bf16"), slides.bags, slides.labels, device="cpu")
    assert len(prepare(config_of(), slides.bags, slides.labels, device="cpu").splits) == 2
