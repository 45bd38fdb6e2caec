"""Kept less and computed again: the same values and gradients as when everything is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from anlage.models.layers.recompute import linear_after
from anlage.models.vit import VisionTransformer

VARIANTS: dict[str, dict[str, Any]] = {
    "layer_scale": {"layer_scale": 0.7},
    "plain": {"layer_scale": None},
    "swiglu": {"feed_forward": "swiglu", "layer_scale": 0.7},
    "norms": {"qk_norm": True, "dual_patch_norm": True},
    "stochastic_depth": {"stochastic_depth": 0.5},
}


def network(**other: Any) -> VisionTransformer:
    torch.manual_seed(0)
    made = VisionTransformer(
        image_px=32, patch_px=8, width=24, depth=3, n_heads=3, n_registers=2, **other
    )
    for parameter in made.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return made.double().train()


def passed(model: VisionTransformer, *, recompute: str) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss of two sizes of images, one of them masked, and its gradients."""
    torch.manual_seed(1)
    images = [torch.randn(4, 3, 32, 32).double(), torch.randn(6, 3, 16, 16).double()]
    masks = [torch.rand(4, 16) > 0.5, None]
    generator = torch.Generator().manual_seed(2)
    model.zero_grad()
    seen = model(images, masks, generator=generator, recompute=recompute)
    loss = sum(part.cls_BD.square().sum() + part.patches_BND.sin().sum() for part in seen)
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients


@pytest.mark.parametrize("variant", VARIANTS)
def test_whole_blocks_run_again_to_the_same_bits(variant: str) -> None:
    model = network(**VARIANTS[variant])
    loss, gradients = passed(model, recompute="full")
    wanted_loss, wanted = passed(model, recompute="none")
    assert torch.equal(loss, wanted_loss)
    assert gradients.keys() == wanted.keys()
    assert all(torch.equal(gradients[name], gradient) for name, gradient in wanted.items())


def test_of_whole_blocks_the_inputs_are_kept() -> None:
    model = network(layer_scale=0.7)
    many, few = (kept_bytes(model, n, recompute="full") for n in (8, 4))
    n_tokens, n_patches = 4 * (64 + 3), 4 * 64
    n_values = 3 * n_tokens * 24  # 3 blocks
    n_values += n_patches * 3 * 8**2 + n_tokens * 2 * 24  # pixels; the last norm and its output
    assert many - few == pytest.approx(8 * n_values, rel=0.03)


def test_what_can_run_again_is_named() -> None:
    with pytest.raises(ValueError, match="'none', 'selective' or 'full'; got 'some'"):
        passed(network(), recompute="some")


@pytest.mark.parametrize("variant", VARIANTS)
def test_values_and_gradients_are_those_of_keeping_all(variant: str) -> None:
    model = network(**VARIANTS[variant])
    loss, gradients = passed(model, recompute="selective")
    wanted_loss, wanted = passed(model, recompute="none")
    torch.testing.assert_close(loss, wanted_loss, rtol=1e-12, atol=0)
    assert gradients.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-9, atol=1e-10, msg=name)


def test_without_gains_nothing_differs_by_a_bit() -> None:
    model = network(layer_scale=None)
    loss, gradients = passed(model, recompute="selective")
    wanted_loss, wanted = passed(model, recompute="none")
    assert torch.equal(loss, wanted_loss)
    assert all(torch.equal(gradients[name], gradient) for name, gradient in wanted.items())


def test_autocast_holds_in_the_backward_pass() -> None:
    model = network(layer_scale=None).float()
    found = []
    for recompute in ("selective", "none"):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            seen = model([torch.ones(2, 3, 32, 32)], recompute=recompute)[0]
        seen.patches_BND.float().sin().sum().backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(ours, wanted) for ours, wanted in zip(*found, strict=True))


@pytest.mark.parametrize("variant", ["layer_scale", "plain", "swiglu"])
def test_no_product_of_matrices_runs_twice(variant: str) -> None:
    model = network(**VARIANTS[variant])
    flops = []
    for recompute in ("selective", "none"):
        with FlopCounterMode(display=False) as counter:
            passed(model, recompute=recompute)
        flops.append(counter.get_total_flops())
    assert flops[0] == flops[1] > 0


class Living(TorchDispatchMode):
    """Remembers which tensors operations made, without keeping them alive."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[torch.multiprocessing.reductions.StorageWeakRef] = []
        self.bytes: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.made.append(torch.multiprocessing.reductions.StorageWeakRef(storage))
                self.bytes.append(storage.nbytes())
        return out

    def alive(self) -> int:
        """Bytes of the storages that are alive."""
        each = {
            ref.cdata: n_bytes
            for ref, n_bytes in zip(self.made, self.bytes, strict=True)
            if not ref.expired()
        }
        return sum(each.values())


def kept_bytes(model: VisionTransformer, n_images: int, *, recompute: str) -> int:
    with Living() as living:
        seen = model([torch.ones(n_images, 3, 64, 64).double()], recompute=recompute)
    assert seen[0].cls_BD.requires_grad
    return living.alive()


def test_about_half_is_kept() -> None:
    """Of a token: two inputs of norms, q, k, v, the mixture, the hidden layer, against all else."""
    model = network(layer_scale=0.7)
    lean, whole = (
        kept_bytes(model, 8, recompute=recompute) - kept_bytes(model, 4, recompute=recompute)
        for recompute in ("selective", "none")
    )
    n_tokens, n_patches = 4 * (64 + 3), 4 * 64
    n_values = 3 * n_tokens * ((2 + 3 + 1 + 4) * 24 + 3)  # 3 blocks; attention's sum of each head
    n_values += n_patches * 3 * 8**2 + n_tokens * 2 * 24  # pixels; the last norm and its output
    assert lean == pytest.approx(8 * n_values, rel=0.02)
    assert lean < 0.65 * whole


def test_without_gradients_it_is_just_the_two() -> None:
    layer = torch.nn.Linear(3, 2)
    rows = torch.randn(4, 3)
    with torch.no_grad():
        assert torch.equal(linear_after(torch.sin, rows, layer=layer), layer(rows.sin()))
