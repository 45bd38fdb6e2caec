"""A step taken in parts is the step of the whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from same_run import assert_same_run, metrics_of, run_in_two, tensors_of

from anlage.errors import RecipeError, TrainingError
from anlage.slides.catalogue import Catalogue
from anlage.training import step_views
from anlage.training.tile_pretrain import pretrain_tiles
from micro_recipe import micro_config

# Sums in another order differ in their last bits (1e-7). AdamW would blow that up wherever the
# true gradient is zero (the bias of keys), for it divides by the gradient's own size: a large
# epsilon keeps the update in proportion to the gradient.
PLAIN = ("steps=3", "model.stochastic_depth=0", "optimizer.warmup=0", "optimizer.epsilon=1e-2")
FAST = ("precision=fp32", "optimizer.peak_lr=1e-2", "optimizer.clip_norm=null")
TOLERANCE = 2e-6
METHODS = {
    "dino": ("objective.ibot_weight=0", "objective.spread=none"),
    "dinov2": (
        "objective.spread=koleo",
        "objective.spread_weight=1",
        "objective.targets=centering",
    ),
    "virchow2": (
        "objective.spread=kde",
        "objective.spread_weight=1",
        "views.mode=extended_context",
    ),
    "untied-gram": (
        "patch_head={n_prototypes: 32, hidden: 16, bottleneck: 8, linear_std: null}",
        "objective.gram={start: 0.3}",
    ),
}


@pytest.mark.parametrize("method", METHODS)
def test_parts_give_the_weights_and_the_loss_of_the_whole_batch(
    catalogue: Catalogue, tmp_path: Path, method: str
) -> None:
    recipe = (*PLAIN, *FAST, "seed=2", *METHODS[method])
    for parts in (1, 2, 4):
        config = micro_config(*recipe, f"accumulate={parts}")
        pretrain_tiles(config, catalogue, tmp_path / f"{parts}", device="cpu")
    whole, rows = tensors_of(tmp_path / "1"), metrics_of(tmp_path / "1")
    for parts in (2, 4):
        taken = tensors_of(tmp_path / f"{parts}")
        assert taken.keys() == whole.keys()
        for name, tensor in whole.items():
            if not name.startswith("optimizer."):
                torch.testing.assert_close(taken[name], tensor, rtol=0, atol=TOLERANCE, msg=name)
        for row, other in zip(rows, metrics_of(tmp_path / f"{parts}"), strict=True):
            assert other == pytest.approx(row, rel=1e-4, abs=1e-5)
    moved = whole["student.head.mlp.0.weight"] - whole["teacher.head.mlp.0.weight"]
    assert moved.abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("parts", [2, 4])
def test_with_stochastic_depth_a_run_in_parts_resumes_bit_by_bit(
    catalogue: Catalogue, tmp_path: Path, parts: int
) -> None:
    config = micro_config("steps=4", "optimizer.warmup=0", f"accumulate={parts}")
    assert config.model.stochastic_depth > 0

    def pretrain(run: Path, *, resume: bool = False):
        return pretrain_tiles(config, catalogue, run, resume=resume, device="cpu")

    pretrain(tmp_path / "straight")
    run_in_two(pretrain, tmp_path / "run", stop=3)
    assert_same_run(tmp_path / "straight", tmp_path / "run")


def test_a_fault_in_a_later_part_is_told_of_its_own_tiles(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tile 6 is the third of the second batch: the first of its second part."""
    cut = step_views.views

    def poisoned(pixels, g, *, spec, seed):
        made = cut(pixels, g, spec=spec, seed=seed)
        if int(g[0]) == 6:
            made.local_crops.view(spec.n_local, len(g), 3, 16, 16)[:, 0] = float("nan")
        return made

    monkeypatch.setattr(step_views, "views", poisoned)
    config = micro_config("steps=2", "accumulate=2")
    with pytest.raises(TrainingError, match="not finite at step 1") as error:
        pretrain_tiles(config, catalogue, tmp_path / "run", device="cpu")
    message = str(error.value)
    assert "First: local views of tiles 2 to 3: " in message
    assert "of the batch" not in message  # rows of a part are not those of the batch
    assert "g=6" in message
    assert "g=4" not in message


def test_parts_of_unequal_size_are_refused() -> None:
    with pytest.raises(RecipeError, match="accumulate=3 needs to divide batch_size=4"):
        micro_config("accumulate=3")
