"""Real faults in real networks: the first tensor that is not finite is named, and its maker."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from anlage.models.layers.packing import SequenceShape
from anlage.models.projection_head import ProjectionHead
from anlage.models.vit import VisionTransformer
from anlage.training.forensics import OUTSIDE, Finding, first_non_finite, packed_tiles

N_TILES = 3


class Network(nn.Module):
    """A small encoder with a head, called one after the other as training does."""

    def __init__(self, **settings) -> None:
        super().__init__()
        torch.manual_seed(0)
        shape = {"image_px": 16, "patch_px": 8, "width": 8, "depth": 2, "n_heads": 2}
        self.encoder = VisionTransformer(**shape, **settings)
        self.head = ProjectionHead(width=8, n_prototypes=6, hidden=12, bottleneck=4)


def tiles() -> Tensor:
    return torch.randn(N_TILES, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def step(network: Network, images: Tensor, loss: Callable[[Tensor], Tensor] = Tensor.mean):
    def run() -> None:
        seen = network.encoder([images, images[:, :, :8, :8]])
        logits = network.head(torch.cat([part.cls_BD for part in seen]))
        loss(logits.square()).backward()

    return run


def find(network: Network, images: Tensor | None = None, **settings) -> Finding | None:
    images = tiles() if images is None else images
    loss = settings.pop("loss", Tensor.mean)
    return first_non_finite({"student": network}, step(network, images, loss), **settings)


def n_hooks(network: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    modules = sum(len(getattr(m, kind)) for m in network.modules() for kind in kinds)
    return modules + sum(len(p._backward_hooks or ()) for p in network.parameters())


def test_a_healthy_step_finds_nothing_and_leaves_nothing() -> None:
    network = Network()
    assert find(network) is None
    assert n_hooks(network) == 0
    assert all(p.grad is None for p in network.parameters())


def test_looking_changes_no_number() -> None:
    network, seen = Network(), {}

    def run() -> None:
        step(network, tiles())()
        seen.update(
            {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
        )

    run()
    plain = dict(seen)
    network.zero_grad()
    assert first_non_finite({"student": network}, run) is None
    assert plain.keys() == seen.keys()
    assert all(torch.equal(plain[name], seen[name]) for name in plain)


def test_a_nan_in_a_weight_is_named_before_anything_runs() -> None:
    network = Network()
    with torch.no_grad():
        network.encoder.blocks[1].mlp.fc1.weight[2, 3] = torch.nan

    def run() -> None:
        raise AssertionError

    found = first_non_finite({"student": network}, run)
    assert found is not None
    assert (found.kind, found.name) == ("parameter", "student.encoder.blocks.1.mlp.fc1.weight")
    assert (found.n_nan, found.n_infinite, found.rows) == (1, 0, (2,))


def test_a_nan_in_a_buffer_is_named() -> None:
    normed = nn.BatchNorm1d(4)
    normed.running_var[1] = torch.inf
    found = first_non_finite({"net": normed}, lambda: None)
    assert found is not None
    assert (found.kind, found.name) == ("parameter", "net.running_var")


def test_an_infinity_in_one_image_is_an_input() -> None:
    images = tiles()
    images[1, 0, 5, 5] = torch.inf
    found = find(Network(), images, inputs={"g": torch.arange(3), "views": images})
    assert found is not None
    assert (found.kind, found.name, found.rows, found.n_infinite) == ("input", "views", (1,), 1)


def test_inputs_that_were_not_shown_are_seen_on_their_way_in() -> None:
    images = tiles()
    images[1, 0, 5, 5] = torch.inf
    found = find(Network(), images)
    assert found is not None
    assert (found.name, found.rows) == (OUTSIDE, (1,))
    assert "the input of student.encoder (float32)" in found.place


def test_a_layer_that_overflows_is_named_with_its_tiles() -> None:
    """Only tile 2 is bright enough to pass float32's largest number."""
    network, images = Network(), tiles()
    with torch.no_grad():
        network.encoder.patch_embed.proj.weight.fill_(1e36)
    images[2] = 50.0
    found = find(
        network, images.sign() * images.abs().clamp(max=50), tiles_of_rows=lambda rows, n: rows
    )
    assert found is not None
    assert found.kind == "activation"
    assert found.name == "student.encoder.patch_embed"
    assert found.place == "the input of student.encoder.patch_embed.norm (float32)"
    assert found.tiles == (2,)


def test_an_overflow_of_half_precision_is_named_where_float32_is_finite() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        network[2].weight.fill_(40_000.0)
        network[0].weight.fill_(1.0)

    def run(dtype: torch.dtype) -> None:
        with torch.autocast("cpu", dtype=dtype):
            out = network(torch.ones(2, 4))
        out.float().mean().backward()

    found = first_non_finite({"net": network}, lambda: run(torch.float16))
    assert found is not None
    assert (found.name, found.n_infinite) == ("net.2", 8)
    assert "float16" in found.place
    assert first_non_finite({"net": network}, lambda: run(torch.bfloat16)) is None


def test_code_between_two_layers_is_blamed_on_the_module_that_holds_it() -> None:
    """Attention itself is a function, not a module: its scores overflow."""
    network = Network()
    with torch.no_grad():
        network.encoder.blocks[1].attn.qkv.weight.fill_(1e30)
        network.encoder.blocks[1].norm1.bias.fill_(1.0)
    found = find(network)
    assert found is not None
    assert (found.kind, found.name) == ("activation", "student.encoder.blocks.1.attn")
    assert "the input of student.encoder.blocks.1.attn.proj" in found.place


class BadGradient(torch.autograd.Function):
    """The identity, whose backward pass is not finite in row 1."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient[1] = torch.nan
        return gradient


class Faulty(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return BadGradient.apply(x)


class RootOfNought(nn.Module):
    """Finite, with a gradient of inf * 0 = NaN below zero."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * (x > 0)).sqrt()


class Residual(nn.Module):
    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.stack([branch(x) for branch in self.branches]).sum(0)


def backward_of(network: nn.Module, x: Tensor | None = None) -> Finding | None:
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(2)) if x is None else x
    return first_non_finite({"net": network}, lambda: network(x).square().sum().backward())


def test_a_gradient_alone_is_named_with_its_row() -> None:
    found = backward_of(nn.Sequential(nn.Linear(5, 5), Faulty(), nn.Linear(5, 5)))
    assert found is not None
    assert (found.kind, found.name, found.rows) == ("gradient", "net.1", (1,))
    assert found.place == "the gradient of the input of net.1 (float32)"


def test_the_root_of_nought_is_named() -> None:
    found = backward_of(nn.Sequential(nn.Linear(5, 5), RootOfNought(), nn.Linear(5, 5)))
    assert found is not None
    assert (found.kind, found.name) == ("gradient", "net.1")
    assert found.n_nan > 0


@pytest.mark.parametrize("place", [0, 1, 2])
def test_of_branches_that_share_their_input_the_faulty_one_is_named(place: int) -> None:
    branches = [nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 5)]
    branches[place] = nn.Sequential(nn.Linear(5, 5), Faulty())
    found = backward_of(nn.Sequential(nn.Linear(5, 5), Residual(*branches), nn.Linear(5, 5)))
    assert found is not None
    assert found.name == f"net.1.branches.{place}.1"


def test_layers_that_change_their_input_in_place_are_watched_too() -> None:
    layers = [nn.Linear(5, 5), nn.ReLU(inplace=True), Faulty(), nn.ReLU(inplace=True)]
    found = backward_of(nn.Sequential(*layers, nn.Linear(5, 5)))
    assert found is not None
    assert found.name == "net.2"


def test_a_gradient_that_comes_from_the_loss_is_not_blamed_on_a_module() -> None:
    found = find(Network(), loss=lambda logits: (logits - logits.detach()).sqrt().sum())
    assert found is not None
    assert (found.kind, found.name) == ("gradient", OUTSIDE)
    assert "the gradient of the output of student.head" in found.place


def test_a_gradient_between_two_layers_is_blamed_on_the_module_that_holds_them() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.below, self.above = nn.Linear(5, 5), nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.above(BadGradient.apply(self.below(x)))

    found = backward_of(nn.Sequential(nn.Linear(5, 5), Holder()))
    assert found is not None
    assert found.name == "net.1"
    assert "the gradient of the output of net.1.below" in found.place


def test_a_gradient_of_a_parameter_alone_is_named() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.zeros(5))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.gain.sqrt()

    found = backward_of(nn.Sequential(nn.Linear(5, 5), Scale(), nn.Linear(5, 5)))
    assert found is not None
    assert (found.kind, found.name) == ("parameter gradient", "net.1.gain")
    assert found.n_infinite == 5


def test_a_layer_with_both_gradients_at_fault_is_named_by_the_one_that_has_rows() -> None:
    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
            return x * weight

        @staticmethod
        def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
            return BadGradient.backward(ctx, gradient), torch.full((5,), torch.nan)

    class Gain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(5))

        def forward(self, x: Tensor) -> Tensor:
            return Product.apply(x, self.gain)

    found = backward_of(nn.Sequential(nn.Linear(5, 5), Gain(), nn.Linear(5, 5)))
    assert found is not None
    assert (found.kind, found.name, found.rows) == ("gradient", "net.1", (1,))


def test_of_two_faults_the_first_in_execution_is_named() -> None:
    def faulty(forward: int, backward: int) -> nn.Sequential:
        layers = [nn.Linear(5, 5) for _ in range(5)]
        layers[backward] = Faulty()
        with torch.no_grad():
            layers[forward].weight.fill_(3e38)
        return nn.Sequential(*layers)

    for forward, backward in ((1, 3), (3, 1)):
        found = backward_of(faulty(forward, backward))
        assert found is not None
        assert (found.kind, found.name) == ("activation", f"net.{forward}")
    layers = [nn.Linear(5, 5), Faulty(), nn.Linear(5, 5), Faulty(), nn.Linear(5, 5)]
    found = backward_of(nn.Sequential(*layers))
    assert found is not None
    assert found.name == "net.3"  # the backward pass meets it first
    overflows = nn.Sequential(*[nn.Linear(5, 5, bias=False) for _ in range(4)])
    with torch.no_grad():
        overflows[1].weight.fill_(3e38)
        overflows[2].weight.fill_(3e38)
    found = backward_of(overflows)
    assert found is not None
    assert found.name == "net.1"


@pytest.mark.slow
def test_recomputed_activations_are_watched_too() -> None:
    from torch.utils.checkpoint import checkpoint

    block = nn.Sequential(nn.Linear(5, 5), Faulty(), nn.Linear(5, 5))
    x = torch.randn(4, 5)
    found = first_non_finite(
        {"net": block}, lambda: checkpoint(block, x, use_reentrant=False).square().sum().backward()
    )
    assert found is not None
    assert (found.kind, found.name) == ("gradient", "net.1")


def test_a_teacher_without_gradients_is_watched() -> None:
    teacher = Network().requires_grad_(requires_grad=False)
    with torch.no_grad():
        teacher.head.mlp[0].weight.fill_(3e38)
        teacher.encoder.norm.bias.fill_(10.0)

    @torch.no_grad()
    def run() -> None:
        teacher.head(teacher.encoder.embed(tiles()).cls_BD)

    found = first_non_finite({"student": Network(), "teacher": teacher}, run)
    assert found is not None
    assert found.name == "teacher.head.mlp.0"


def test_hooks_go_when_the_step_fails() -> None:
    network = Network()

    def run() -> None:
        step(network, tiles())()
        raise MemoryError

    with pytest.raises(MemoryError):
        first_non_finite({"student": network}, run)
    assert n_hooks(network) == 0
    assert all(p.grad is None for p in network.parameters())


def test_rows_of_packed_tokens_become_tiles() -> None:
    """Two global views of 3 tiles at 5 tokens, four local ones at 2 tokens."""
    shapes = [SequenceShape(6, 5), SequenceShape(12, 2)]
    tiles_of_rows = packed_tiles(shapes, 3)
    assert tiles_of_rows([0, 4, 5, 15, 29], 54) == [0, 0, 1, 0, 2]  # all tokens
    assert tiles_of_rows([30, 31, 32, 53], 54) == [0, 0, 1, 2]
    assert tiles_of_rows([0, 4, 29], 30) == [0, 0, 2]  # the teacher's tokens
    assert tiles_of_rows([1, 5], 6) == [1, 2]  # global views
    assert tiles_of_rows([1, 11], 12) == [1, 2]  # local views
    assert tiles_of_rows([1, 17], 18) == [1, 2]  # class tokens of all views
    assert tiles_of_rows([2], 3) == [2]
    assert tiles_of_rows([2], 7) is None


def test_packed_tokens_name_their_tile_however_many_they_are() -> None:
    """A loud image makes over 64 token rows not finite; the tile is told from all of them."""
    torch.manual_seed(0)
    encoder = VisionTransformer(image_px=64, patch_px=8, width=8, depth=1, n_heads=2)
    with torch.no_grad():
        encoder.blocks[0].mlp.fc2.bias.fill_(3e38)
        encoder.blocks[0].ls2.gamma.fill_(1.5)
    images = torch.randn(4, 3, 64, 64)
    found = first_non_finite(
        {"student": encoder},
        lambda: encoder.embed(images).cls_BD.mean().backward(),
        tiles_of_rows=packed_tiles([SequenceShape(4, 65)], 4),
    )
    assert found is not None
    assert found.name == "student.blocks.0.ls2"
    assert found.tiles == (0, 1, 2, 3)
    assert (len(found.rows), found.n_rows_at_fault, found.n_rows) == (64, 260, 260)


def test_a_finding_reads_as_a_sentence() -> None:
    images = tiles()
    images[1, 0, 5, 5:7] = torch.inf
    images[1, 0, 6, 5] = torch.nan
    found = find(Network(), images, inputs={"views": images})
    assert str(found) == (
        "views: 1 NaN and 2 infinite of 2304 values in what the step was given (float32), "
        "rows 1 of 3"
    )
    found = find(
        Network(), images, inputs={"views": images}, tiles_of_rows=packed_tiles([], N_TILES)
    )
    assert str(found).endswith("(float32), of tiles 1 of the batch")
