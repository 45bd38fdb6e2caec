"""Counted FLOPs and memory, beside torch's counter, torchvision's figures and autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from anlage.models.flops import (
    activation_bytes,
    forward_flops,
    head_flops,
    parameter_count,
    recomputed_bytes,
    step_flops,
)
from anlage.models.projection_head import ProjectionHead
from anlage.models.sizes import SIZES, size_arguments
from anlage.models.vit import VisionTransformer
from anlage.models.without_weights import without_weights

TINY = {"image_px": 32, "patch_px": 8, "width": 48, "depth": 3, "n_heads": 3, "n_registers": 2}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"layer_scale": None},
    "layer_scale": {},
    "swiglu": {"feed_forward": "swiglu"},
    "narrow_mlp": {"mlp_ratio": 2.5},
    "norms": {"qk_norm": True, "dual_patch_norm": True},
    "no_registers": {"n_registers": 0},
}
HEAD = {"n_prototypes": 40, "hidden": 32, "bottleneck": 16, "n_layers": 3}


def counted(model: nn.Module, inputs: Tensor, *, backward: bool = False) -> int:
    """What torch's own counter sees: products of matrices, by the shapes that really run."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        if isinstance(model, VisionTransformer):
            output = model.embed(inputs)
            value = output.cls_BD.sum() + output.patches_BND.sum()
        else:
            value = model(inputs).sum()
        if backward:
            value.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("edge_px", [16, 32, 56])
def test_forward_equals_torchs_counter(variant: str, edge_px: int) -> None:
    architecture = TINY | VARIANTS[variant]
    images = torch.zeros(2, 3, edge_px, edge_px)
    found = forward_flops(architecture, edge_px=edge_px)
    assert counted(VisionTransformer(**architecture), images) == 2 * found


@pytest.mark.parametrize("name", ["vit-s16", "vit-h14-reg4"])
def test_forward_equals_torchs_counter_at_full_size(name: str) -> None:
    with without_weights():
        model = VisionTransformer(**size_arguments(name))
        images = torch.zeros(1, 3, 224, 224)
    assert counted(model, images) == forward_flops(size_arguments(name), edge_px=224)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("vit-b16", torchvision.models.ViT_B_16_Weights.IMAGENET1K_V1),
        ("vit-l16", torchvision.models.ViT_L_16_Weights.IMAGENET1K_V1),
    ],
)
def test_forward_equals_torchvisions_published_figure(name: str, weights: Any) -> None:
    width, thousand_classes = SIZES[name]["width"], 1000
    published = weights.meta["_ops"] * 1e9  # multiplications with addition, rounded to a million
    found = forward_flops(size_arguments(name), edge_px=224) / 2 + width * thousand_classes
    assert abs(found - published) <= 0.5e6
    classifier = (width + 1) * thousand_classes
    gains = 0 if SIZES[name]["layer_scale"] is None else 2 * width * SIZES[name]["depth"]
    assert parameter_count(size_arguments(name)) == weights.meta["num_params"] - classifier + gains


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_is_three_forward_passes(variant: str) -> None:
    architecture = TINY | VARIANTS[variant]
    model = VisionTransformer(**architecture)
    found = counted(model, torch.zeros(1, 3, 32, 32), backward=True)
    forward = forward_flops(architecture, edge_px=32)
    to_pixels = 0 if architecture.get("dual_patch_norm") else 2 * 16 * 3 * 8**2 * 48
    assert found == 3 * forward - to_pixels


@pytest.mark.parametrize("name", ["vit-ti16", "vit-l16", "vit-bigg14-reg8"])
def test_the_gradient_to_pixels_that_is_counted_and_not_run_is_small(name: str) -> None:
    size = SIZES[name]
    patches = (224 // size["patch_px"]) ** 2
    to_pixels = 2 * patches * 3 * size["patch_px"] ** 2 * size["width"]
    assert 0.0001 < to_pixels / (3 * forward_flops(size, edge_px=224)) < 0.01


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_heads_equal_torchs_counter(n_layers: int) -> None:
    sizes = HEAD | {"n_layers": n_layers}
    head = ProjectionHead(width=48, **sizes)
    rows = torch.zeros(7, 48, requires_grad=True)
    assert counted(head, rows) == head_flops(7, sizes, width=48)
    assert counted(head, rows, backward=True) == 3 * head_flops(7, sizes, width=48)


def test_a_broken_number_of_rows_counts_in_proportion() -> None:
    assert head_flops(38.4, HEAD, width=48) == pytest.approx(38.4 * head_flops(1, HEAD, width=48))
    assert head_flops(0, HEAD, width=48) == 0


def counted_step(
    student: VisionTransformer, teacher: VisionTransformer, heads: Sequence[nn.Module]
) -> int:
    """A step for two tiles: 2 global views of 32 px, 3 local ones of 16 px, 10 masked patches."""
    images = [torch.zeros(4, 3, 32, 32), torch.zeros(6, 3, 16, 16)]
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        large, small = student.train()(images)
        cls_tokens = torch.cat([large.cls_BD, small.cls_BD])
        patches = large.patches_BND.flatten(0, 1)[:10]
        (heads[0](cls_tokens).sum() + heads[1](patches).sum()).backward()
        with torch.no_grad():
            seen = teacher.embed(images[0])
            heads[2](seen.cls_BD)
            heads[3](seen.patches_BND.flatten(0, 1)[:10])
    return counter.get_total_flops()


@pytest.mark.parametrize("stochastic_depth", [0.0, 0.5])
@pytest.mark.parametrize("other", [{}, {"width": 96, "depth": 2, "feed_forward": "swiglu"}])
def test_a_step_equals_torchs_counter(stochastic_depth: float, other: dict[str, Any]) -> None:
    learner = TINY | {"stochastic_depth": stochastic_depth, "dual_patch_norm": True}
    wide = TINY | other
    patch_head = HEAD | {"n_prototypes": 24}
    heads = [
        ProjectionHead(width=architecture["width"], **sizes)
        for architecture in (learner, wide)
        for sizes in (HEAD, patch_head)
    ]
    found = step_flops(
        learner, teacher=wide, cls_head=HEAD, patch_head=patch_head, global_px=32, local_px=16,
        n_local=3, masked_patches=5.0,
    )  # fmt: skip
    wanted = counted_step(VisionTransformer(**learner), VisionTransformer(**wide), heads)
    assert 2 * found.total == pytest.approx(wanted, rel=1e-12)


def test_a_step_without_local_views_and_patches_is_smaller_by_just_those() -> None:
    whole = step_flops(TINY, cls_head=HEAD, global_px=32, local_px=16, masked_patches=5.0)
    alone = step_flops(TINY, cls_head=HEAD, global_px=32, n_local=0)
    local = 3 * 8 * forward_flops(TINY, edge_px=16)
    assert whole.student - alone.student == local
    assert whole.teacher == alone.teacher == 2 * forward_flops(TINY, edge_px=32)
    rows = head_flops(8 + 5, HEAD, width=48)
    assert whole.student_heads - alone.student_heads == pytest.approx(3 * rows)
    assert whole.teacher_heads == pytest.approx(head_flops(2 + 5, HEAD, width=48))


def kept_bytes(
    model: VisionTransformer, n_images: int, *, mixed_precision: bool, recompute: str = "none"
) -> int:
    """What autograd keeps for ``n_images`` of 64 px beside four of 32 px; each storage once."""
    images = [torch.randn(n_images, 3, 64, 64), torch.randn(4, 3, 32, 32)]
    masks = [torch.rand(n_images, 64) > 0.5, None]
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, tuple[int, Tensor]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed_precision),
    ):
        model(images, masks, recompute=recompute)
    return sum(n_bytes for n_bytes, _ in kept.values())


@pytest.mark.parametrize("mixed_precision", [False, True])
@pytest.mark.parametrize(
    "other",
    [*VARIANTS.values(), {"stochastic_depth": 0.25}, {"qk_norm": True, "feed_forward": "swiglu"}],
    ids=[*VARIANTS, "stochastic_depth", "gated_qk"],
)
def test_memory_is_what_autograd_keeps(other: dict[str, Any], mixed_precision: bool) -> None:
    architecture = TINY | {"image_px": 64, "width": 64, "n_heads": 2} | other
    model = VisionTransformer(**architecture).train()
    few, many = (
        kept_bytes(model, n_images, mixed_precision=mixed_precision) for n_images in (4, 8)
    )
    found = activation_bytes(architecture, edge_px=64, mixed_precision=mixed_precision)
    assert found == pytest.approx((many - few) / 4, rel=0.01)  # weights' copies cancel


@pytest.mark.parametrize("mixed_precision", [False, True])
@pytest.mark.parametrize("stochastic_depth", [0.0, 0.25])
@pytest.mark.parametrize("feed_forward", ["mlp", "swiglu"])
def test_running_whole_blocks_again_keeps_what_autograd_keeps(
    feed_forward: str, stochastic_depth: float, mixed_precision: bool
) -> None:
    other = {"feed_forward": feed_forward, "stochastic_depth": stochastic_depth}
    architecture = TINY | {"image_px": 64, "width": 64, "n_heads": 2} | other
    model = VisionTransformer(**architecture).train()
    settings = {"mixed_precision": mixed_precision, "recompute": "full"}
    inputs, drawn = [], []
    for n_images in (4, 8):
        hooks = [
            block.register_forward_pre_hook(lambda _, given: drawn.append(given[2]))
            for block in model.blocks
        ]
        inputs.append(kept_bytes(model, n_images, **settings))
        for hook in hooks:
            hook.remove()
    n_bytes = [sum(t.nbytes for k in of or () for t in k[:2]) for of in drawn]
    depth = len(model.blocks)  # autograd's hooks do not see what a block's closure holds
    few, many = inputs[0] + sum(n_bytes[:depth]), inputs[1] + sum(n_bytes[depth:])
    found = activation_bytes(architecture, edge_px=64, **settings)
    assert found == pytest.approx((many - few) / 4, rel=0.01)


@pytest.mark.parametrize("mixed_precision", [False, True])
@pytest.mark.parametrize("other", [*VARIANTS.values(), {"stochastic_depth": 0.25}])
def test_a_block_that_runs_again_makes_what_autograd_keeps_of_it(
    other: dict[str, Any], mixed_precision: bool
) -> None:
    """Of two blocks, beside one: what the second adds to a pass in which nothing runs again."""
    architecture = TINY | {"image_px": 64, "width": 64, "n_heads": 2} | other
    kept = []
    for depth in (1, 2):
        model = VisionTransformer(**architecture | {"depth": depth}).train()
        few, many = (kept_bytes(model, n, mixed_precision=mixed_precision) for n in (4, 8))
        kept.append((many - few) / 4)
    n_tokens = 64 + 1 + architecture.get("n_registers", 0)
    its_input = 0 if "stochastic_depth" in other else 4 * 64 * n_tokens
    found = recomputed_bytes(architecture, edge_px=64, mixed_precision=mixed_precision)
    assert found == pytest.approx(kept[1] - kept[0] - its_input, rel=0.01)


@pytest.mark.parametrize(
    ("feed_forward", "channels"),
    [("mlp", 2 + 3 + 1 + 4), ("swiglu", 2 + 3 + 1 + 2 * 8 / 3)],
)
def test_recomputing_keeps_what_norms_attention_and_activations_take(
    feed_forward: str, channels: float
) -> None:
    """A token's inputs of two norms, q, k, v, attention's output, the activation's input."""
    architecture = TINY | {"image_px": 64, "width": 96, "n_heads": 2, "feed_forward": feed_forward}
    settings = {"edge_px": 64, "mixed_precision": False}
    one, three = (
        activation_bytes(architecture | {"depth": depth}, **settings, recompute="selective")
        for depth in (1, 3)
    )
    n_tokens = 64 + 1 + architecture.get("n_registers", 0)
    expected = n_tokens * 4 * (channels * 96 + 4 + 2)
    assert (three - one) / 2 == pytest.approx(expected, rel=1e-3)
    assert one < activation_bytes(architecture | {"depth": 1}, **settings)


@pytest.mark.parametrize("edge_px", [0, 4, 30])
def test_an_edge_that_cuts_patches_is_refused(edge_px: int) -> None:
    near = max(round(edge_px / 8), 1) * 8
    with pytest.raises(ValueError, match=f"patch_px=8; got {edge_px}. Use {near}"):
        forward_flops(TINY, edge_px=edge_px)
