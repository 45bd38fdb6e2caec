"""Parameter groups and clipping against DINOv2's rules, written out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from anlage.training.network_config import Architecture, Head
from anlage.training.networks import EncoderWithHeads
from anlage.training.optimizer import (
    build_optimizer,
    clip_gradients,
    learning_rate_factor,
    set_rates,
)
from anlage.training.optimizer_config import Optimisation
from anlage.training.stable_adamw import StableAdamW

ARCHITECTURE = Architecture(
    image_px=16, patch_px=8, width=16, depth=2, n_heads=2, n_registers=1, layer_scale=1e-5
)
HEAD = Head(n_prototypes=8, hidden=12, bottleneck=6)


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("encoder.patch_embed.proj.weight", 0.5**3 * 0.2),
        ("encoder.cls_token", 0.5**3),
        ("encoder.pos_embed", 0.5**3),
        ("encoder.mask_token", 0.5**3),
        ("encoder.blocks.0.attn.qkv.weight", 0.5**2),
        ("encoder.blocks.1.mlp.fc1.bias", 0.5),
        ("encoder.norm.weight", 1.0),
        ("head.mlp.0.weight", 1.0),
    ],
)
def test_layer_decay(name: str, factor: float) -> None:
    config = Optimisation(peak_lr=1.0, layer_decay=0.5, patch_embed_lr=0.2)
    assert learning_rate_factor(name, config, depth=2) == pytest.approx(factor)


def test_every_parameter_is_in_one_group_with_the_right_decay() -> None:
    student = EncoderWithHeads(ARCHITECTURE, HEAD, HEAD)
    optimizer = build_optimizer(student, Optimisation(peak_lr=1.0), depth=2)
    names = {id(p): n for n, p in student.named_parameters()}
    grouped = [(names[id(p)], g) for g in optimizer.param_groups for p in g["params"]]
    assert sorted(n for n, _ in grouped) == sorted(names.values())
    for name, group in grouped:
        spared = name.endswith(".bias") or "norm" in name or "gamma" in name
        assert group["decays"] is not spared, name
        assert group["prototypes"] is ("last_layer" in name), name
    assert any(g["prototypes"] for g in optimizer.param_groups)


def test_frozen_prototypes_do_not_move_and_then_do() -> None:
    torch.manual_seed(0)
    student = EncoderWithHeads(ARCHITECTURE, HEAD, HEAD)
    optimizer = build_optimizer(student, Optimisation(peak_lr=0.1), depth=2)
    last = {n: p for n, p in student.named_parameters() if "last_layer" in n}
    before = {n: p.detach().clone() for n, p in last.items()}
    for frozen in (True, False):
        set_rates(optimizer, lr=0.1, weight_decay=0.1, prototypes_frozen=frozen)
        output = student.encoder([torch.randn(3, 3, 16, 16)])[0]
        optimizer.zero_grad()
        student.head(output.cls_BD).square().sum().backward()
        optimizer.step()
        moved = any(not torch.equal(before[n], p) for n, p in last.items())
        assert moved is not frozen


def test_networks_are_clipped_apart() -> None:
    big, small = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
    big.weight.grad, small.weight.grad = torch.tensor([[30.0, 40.0]]), torch.tensor([[0.3, 0.4]])
    norms = clip_gradients({"big": big, "small": small}, max_norm=5.0)
    assert float(norms["big"]) == pytest.approx(50.0)
    assert float(norms["small"]) == pytest.approx(0.5)
    torch.testing.assert_close(big.weight.grad, torch.tensor([[3.0, 4.0]]), rtol=1e-4, atol=0)
    torch.testing.assert_close(small.weight.grad, torch.tensor([[0.3, 0.4]]))
    unclipped = clip_gradients({"big": big}, max_norm=None)
    assert float(unclipped["big"]) == pytest.approx(5.0, rel=1e-4)


def test_every_group_gets_its_own_rate_and_decay() -> None:
    student = EncoderWithHeads(ARCHITECTURE, HEAD, HEAD)
    config = Optimisation(peak_lr=1.0, layer_decay=0.5, patch_embed_lr=0.2)
    optimizer = build_optimizer(student, config, depth=2)
    set_rates(optimizer, lr=0.1, weight_decay=0.3, prototypes_frozen=False)
    group = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in student.named_parameters():
        factor = learning_rate_factor(name, config, depth=2)
        assert group[id(parameter)]["lr"] == pytest.approx(0.1 * factor), name
        spared = name.endswith(".bias") or "norm" in name or "gamma" in name
        assert group[id(parameter)]["weight_decay"] == (0.0 if spared else 0.3), name


def test_a_frozen_encoder_does_not_move_while_its_heads_do() -> None:
    torch.manual_seed(0)
    student = EncoderWithHeads(ARCHITECTURE, HEAD, None)
    optimizer = build_optimizer(student, Optimisation(peak_lr=0.1), depth=2)
    before = {n: p.detach().clone() for n, p in student.named_parameters()}
    set_rates(optimizer, lr=0.1, weight_decay=0.1, prototypes_frozen=False, encoder_frozen=True)
    for parameter in student.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in student.named_parameters():
        assert torch.equal(parameter, before[name]) is name.startswith("encoder."), name


def test_the_recipe_chooses_the_optimiser() -> None:
    student = EncoderWithHeads(ARCHITECTURE, HEAD, None)
    stable = Optimisation(
        kind="stable_adamw", peak_lr=0.1, clip_norm=None, betas=(0.8, 0.95), epsilon=1e-6
    )
    made = build_optimizer(student, stable, depth=2)
    assert isinstance(made, StableAdamW)
    assert {(g["betas"], g["eps"]) for g in made.param_groups} == {((0.8, 0.95), 1e-6)}
    plain = build_optimizer(student, Optimisation(peak_lr=0.1, epsilon=1e-5), depth=2)
    assert isinstance(plain, torch.optim.AdamW)
    assert {g["eps"] for g in plain.param_groups} == {1e-5}
