"""What a fine-tuning run refuses or reads before its first step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import marked_bags
import pytest
import torch
from marked_bags import MADE, WIDTH, MarkedSlides, mark_of_class, two_classes, write_marked

from anlage.encoders import precision
from anlage.encoders.slide_model_folder import OpenSlideModel, SlideModelConfig, SlideTask
from anlage.errors import BagError, RecipeError
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


def test_a_model_of_converted_bags_takes_bags_of_the_same_encoder(tmp_path, monkeypatch) -> None:
    """Converted bags tell a name; those of anlage a fingerprint too."""
    converted = {"encoder_fingerprint": "named:uni", "encoder_name": "uni"}
    with monkeypatch.context() as patched:
        patched.setattr(marked_bags, "MADE", replace(MADE, **converted))
        slides = write_marked(tmp_path, two_classes(12), mark_of_class)
    material = prepare(config_of(), slides.bags, slides.labels, device="cpu").material
    assert material.tile_encoder.fingerprint is None
    task = SlideTask(kind="binary", target=("label",), classes=("wild", "mutated"))
    model = SlideModelConfig(architecture={}, task=task, tile_encoder=material.tile_encoder)
    takes = OpenSlideModel("model", model, torch.nn.Identity(), device="cpu")
    ours = replace(MADE, encoder_fingerprint="a" * 64, encoder_name="uni")
    takes.refuse_bag(ours, width=WIDTH, n_tiles=9, place="bag")
    other = replace(ours, encoder_name="virchow")
    with pytest.raises(BagError, match="uni"):
        takes.refuse_bag(other, width=WIDTH, n_tiles=9, place="bag")
