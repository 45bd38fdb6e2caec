"""Layer decay, weight decay and rates of fine-tuning."""

from __future__ import annotations

import math

import pytest
import torch

from anlage.models.slide_model import SlideModel
from anlage.training.finetuning.config import FinetuneRates
from anlage.training.finetuning.optimizer import (
    build_finetune_optimizer,
    rate_at,
    set_finetune_rate,
)

ENCODER = {"width": 16, "depth": 3, "n_heads": 2, "segments": [8, 16], "dilations": [1, 2]}


def model() -> SlideModel:
    return SlideModel(
        input_width=8,
        n_outputs=2,
        slide_encoder=ENCODER,
        pooling={"kind": "abmil", "width": 8, "hidden": 4},
    )


def factors(network: SlideModel, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    name_of = {id(p): name for name, p in network.named_parameters()}
    return {
        name_of[id(p)]: group["lr_factor"]
        for group in optimizer.param_groups
        for p in group["params"]
    }


def test_rates_fall_with_the_distance_from_the_head() -> None:
    """BEiT: the embedding is layer 0, block i is i + 1, all above the blocks as the head."""
    network = model()
    found = factors(
        network, build_finetune_optimizer(network, FinetuneRates(peak_lr=1, layer_decay=0.5))
    )
    assert set(found) == {name for name, _ in network.named_parameters()}
    assert found["slide_encoder.tile_embed.weight"] == found["slide_encoder.slide_token"] == 0.5**4
    for block in range(3):
        assert found[f"slide_encoder.blocks.{block}.attn.qkv.weight"] == 0.5 ** (3 - block)
    assert found["slide_encoder.norm.weight"] == found["head.0.weight"] == 1


def test_biases_and_norms_do_not_decay() -> None:
    network = model()
    optimizer = build_finetune_optimizer(network, FinetuneRates(peak_lr=1, weight_decay=0.3))
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.3 if parameter.ndim > 1 else 0)


def test_what_is_frozen_is_not_held() -> None:
    network = model()
    assert network.slide_encoder is not None
    network.slide_encoder.requires_grad_(False)
    found = factors(network, build_finetune_optimizer(network, FinetuneRates(peak_lr=1)))
    assert not any(name.startswith("slide_encoder") for name in found)


def official_rate(epoch: float, *, lr: float, min_lr: float, warmup: float, epochs: int) -> float:
    """Re-stated from the formula in words: linear warm-up, then half a cosine, by the iteration."""
    if epoch < warmup:
        return lr * epoch / warmup
    return (
        min_lr + (lr - min_lr) * (math.cos(math.pi * (epoch - warmup) / (epochs - warmup)) + 1) / 2
    )


@pytest.mark.parametrize("epoch", [0, 0.25, 1, 1.5, 7.3, 19.99, 20])
def test_the_rate_goes_by_the_step(epoch: float) -> None:
    config = FinetuneRates(base_lr=2e-3, min_lr=1e-6, warmup_epochs=1)
    expected = official_rate(epoch, lr=2e-3 * 32 / 256, min_lr=1e-6, warmup=1, epochs=20)
    assert rate_at(config, epoch, epochs=20, batch_size=32) == pytest.approx(expected)


def test_a_constant_rate_stays() -> None:
    config = FinetuneRates(peak_lr=0.1, schedule="constant", warmup_epochs=2)
    assert rate_at(config, 1, epochs=5, batch_size=4) == pytest.approx(0.05)
    assert rate_at(config, 4.9, epochs=5, batch_size=4) == 0.1


def test_groups_get_their_rates() -> None:
    network = model()
    optimizer = build_finetune_optimizer(network, FinetuneRates(peak_lr=1, layer_decay=0.5))
    set_finetune_rate(optimizer, 0.1)
    assert {round(group["lr"], 6) for group in optimizer.param_groups} == {
        round(0.1 * 0.5**n, 6) for n in range(5)
    }
