"""What a fine-tuning run refuses or reads before its first step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import marked_bags
import numpy as np
import pytest
import torch
from marked_bags import MADE, WIDTH, MarkedSlides, mark_of_class, two_classes, write_marked

from anlage.encoders import precision
from anlage.encoders.slide_model_folder import OpenSlideModel, SlideModelConfig, SlideTask
from anlage.errors import BagError, RecipeError
from anlage.recipe import load_recipe
from anlage.training.finetuning.config import FinetuneConfig
from anlage.training.finetuning.floors import ROWS, mean_tile
from anlage.training.finetuning.preparation import prepare


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


def mean_of(slides: MarkedSlides, slide_id: str) -> np.ndarray:
    with h5py.File(slides.bags / f"{slide_id}.h5") as file:
        return file["features"][:].astype(np.float64).mean(axis=0)


def test_bags_that_the_task_passes_over_are_not_read(tmp_path) -> None:
    rows = [row | {"label": "other"} if n < 2 else row for n, row in enumerate(two_classes(12))]
    slides = write_marked(tmp_path, rows, mark_of_class)
    (slides.bags / "slide 003 0.h5").write_bytes(b"no bag")
    config = config_of("task.classes=[wild, mutated]", "task.positive=null")
    found = prepare(config, slides.bags, slides.labels, device="cpu")
    assert set(found.means) == {f"slide {n:03d} 0" for n in (2, *range(4, 12))}
    assert found.material.cache.n_read == 9
    for slide_id, mean_D in found.means.items():
        np.testing.assert_allclose(mean_D, mean_of(slides, slide_id), rtol=1e-6)


def test_a_patients_next_slide_stands_in_for_a_damaged_one(tmp_path) -> None:
    """It was passed over as the smaller one, and is read when it is needed."""
    slides = write_marked(tmp_path, two_classes(12, slides_each=2), mark_of_class)
    config = config_of("task.unit=largest_slide")
    first = prepare(config, slides.bags, slides.labels, device="cpu")
    largest = sorted(first.means)[3]
    with h5py.File(slides.bags / f"{largest}.h5", "r+") as file:
        file["features"][0, 0] = 3.0  # which its checksum alone tells
    found = prepare(config, slides.bags, slides.labels, device="cpu")
    smaller = f"{largest[:-1]}{1 - int(largest[-1])}"
    assert set(found.means) == set(first.means) - {largest} | {smaller}
    assert set(found.material.targets.slide_ids) == set(found.means)
    assert [slide.slide_id for slide in found.refused] == [largest]


def test_a_mean_tile_is_summed_in_parts() -> None:
    features_LD = torch.randn(2 * ROWS + 7, 3).half() * 100
    expected = features_LD.numpy().astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(mean_tile(features_LD), expected, rtol=1e-6)
