"""What a slide run will take, against the networks themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from slide_runs import micro_slide_config, write_bags

from anlage.bags.loader import BagSet
from anlage.recipe import load_recipe
from anlage.training.slide_pretraining.config import SlidePretrainConfig
from anlage.training.slide_pretraining.feed import choose_bags, drawn_parts
from anlage.training.slide_pretraining.networks import hidden_error
from anlage.training.slide_pretraining.plan import slide_plan_lines, slide_plan_of
from anlage.training.slide_pretraining.state import fresh_slide_training

CPU = torch.device("cpu")


def kept_bytes(config: SlidePretrainConfig, folder: Path) -> tuple[int, list[int], int]:
    """Bytes that autograd keeps of the first part of a run, its tiles, and its parameters."""
    chosen = choose_bags(config, BagSet.open(folder))
    n_bags = len(chosen.train)
    training = fresh_slide_training(config, folder, {}, input_width=12, n_bags=n_bags, device=CPU)
    own = {p.untyped_storage().data_ptr() for p in training.network.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    drawn = drawn_parts(training, chosen, threads=1)
    part = next(drawn)
    drawn.close()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        error = hidden_error(training.network.predicted(part, recompute=False), part)
    assert error.requires_grad  # what it keeps is alive until here
    n_parameters = sum(p.numel() for p in training.network.parameters())
    return sum(kept.values()), list(part.lengths), n_parameters


def test_the_estimate_of_memory_is_near_what_autograd_keeps(tmp_path: Path) -> None:
    folder = write_bags(tmp_path / "bags", n_slides=4)
    config = micro_slide_config(
        *("batch_size=4", "views.crop=1", "held_out.share=0", "bags.max_tiles=null"),
        *("precision=fp32", "model.width=64", "decoder.width=64", "model.dropout=0"),
        *("model.stochastic_depth=0", "model.segments=[1024, 4096]"),
    )
    kept, lengths, n_parameters = kept_bytes(config, folder)
    plan = slide_plan_of(config, lengths, input_width=12, n_held_out=0, device=CPU)
    assert plan.encoder_parameters + plan.decoder_parameters == n_parameters
    assert plan.tiles_per_step == sum(lengths)
    assert kept == pytest.approx(plan.activation_bytes, rel=0.35)


def test_a_part_on_each_of_many_gpus_is_the_papers() -> None:
    config = load_recipe("gigapath-slide", SlidePretrainConfig, overrides=["accumulate=1"])
    plan = slide_plan_of(
        config, [70_121] * 4 + [8_090] * 996, input_width=1536, n_held_out=0, device=CPU, n_ranks=64
    )
    assert (plan.part_size, plan.steps) == (4, 118)  # 30 x 1,000 / 256
    assert plan.encoder_parameters == pytest.approx(86.3e6, abs=0.05e6)
    assert plan.memory_bytes < 80e9  # four of the largest slides on one A100
    keeping = ["accumulate=1", "engine.recompute=false"]
    without = load_recipe("gigapath-slide", SlidePretrainConfig, overrides=keeping)
    more = slide_plan_of(
        without, [70_121] * 4, input_width=1536, n_held_out=0, device=CPU, n_ranks=64
    )
    assert more.activation_bytes > 4 * plan.activation_bytes


def test_large_bags_count_as_far_as_a_step_takes_them() -> None:
    config = micro_slide_config("views.crop=1", "bags.max_tiles=100")
    plan = slide_plan_of(config, [1000, 50, 50, 50], input_width=12, n_held_out=1, device=CPU)
    assert plan.tiles_per_step == 250
    assert plan.largest == 1000
    text = "\n".join(slide_plan_lines(plan))
    assert "4 to train on (1,150 tiles, the largest 1,000), 1 held out" in text
    assert "steps: 3 of 4 bags, 3 epochs" in text
