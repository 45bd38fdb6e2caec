"""Compiled blocks: what eager ones give, in one graph for each list of shapes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from anlage.explain.attention import attention_maps
from anlage.models.vit import VisionTransformer
from anlage.slides.catalogue import Catalogue
from anlage.training import training_state
from anlage.training.compiled import compile_blocks
from anlage.training.log import read_metrics
from anlage.training.networks import frozen_copy
from anlage.training.step_views import most_masked
from anlage.training.tile_pretrain import pretrain_tiles
from micro_recipe import micro_config


def network(**other: object) -> VisionTransformer:
    torch.manual_seed(0)
    sizes = {"image_px": 32, "patch_px": 8, "width": 24, "depth": 3, "n_heads": 3}
    return VisionTransformer(**sizes, layer_scale=0.5, **other).train()


def passed(model: VisionTransformer, seed: int, recompute: str) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    images = [torch.randn(n, 3, px, px, generator=draw) for n, px in ((4, 32), (6, 16))]
    masks = [torch.rand(4, 16, generator=draw) > 0.5, None]
    model.zero_grad()
    seen = model(images, masks, generator=draw, recompute=recompute)
    loss = sum(part.cls_BD.square().sum() + part.patches_BND.sin().sum() for part in seen)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("other", [{}, {"stochastic_depth": 0.4, "qk_norm": True}])
def test_compiled_is_eager_and_nothing_compiles_twice(recompute: str, other: dict) -> None:
    torch.compiler.reset()
    eager, compiled = network(**other), network(**other)
    names = [name for name, _ in compiled.named_parameters()]
    counter = CompileCounterWithBackend("aot_eager")
    compile_blocks(compiled, backend=counter)
    for seed in range(3):
        pairs = zip(passed(eager, seed, recompute), passed(compiled, seed, recompute), strict=True)
        for wanted, found in pairs:
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert [name for name, _ in compiled.named_parameters()] == names
    after_training = counter.frame_count
    assert after_training == 1  # all blocks and all steps share one graph
    passed(compiled, 9, recompute)
    assert counter.frame_count == after_training


def test_more_shapes_than_torch_allows_of_its_own_accord_are_taken() -> None:
    torch.compiler.reset()
    eager, compiled = network().eval(), network().eval()
    compile_blocks(compiled, backend="aot_eager")
    with torch.inference_mode():
        for n_images in range(1, 11):  # torch's own limit is 8
            images = torch.ones(n_images, 3, 32, 32)
            wanted = eager.embed(images).cls_BD
            torch.testing.assert_close(compiled.embed(images).cls_BD, wanted)


def test_student_and_teacher_compile_once_each() -> None:
    torch.compiler.reset()
    student = network(stochastic_depth=0.4)
    teacher = frozen_copy(student)
    counter = CompileCounterWithBackend("aot_eager")
    for model in (student, teacher):
        compile_blocks(model, backend=counter)
    for seed in range(3):
        stance = "fail_on_recompile" if seed else "default"
        with torch.compiler.set_stance(stance):
            passed(student, seed, "none")
            with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
                teacher.embed(torch.ones(4, 3, 32, 32))
    assert counter.frame_count == 2


def test_a_copy_of_a_compiled_network_has_its_own_weights_and_is_not_compiled() -> None:
    torch.compiler.reset()
    compiled = network().eval()
    state = compiled.state_dict().keys()
    counter = CompileCounterWithBackend("aot_eager")
    compile_blocks(compiled, backend=counter)
    copy = frozen_copy(compiled)
    assert compiled.state_dict().keys() == copy.state_dict().keys() == state
    images = torch.ones(2, 3, 32, 32)
    before = compiled.embed(images).cls_BD
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.add_(0.1)
    copy.embed(images)
    assert counter.frame_count == 1  # that of the first network
    assert torch.equal(compiled.embed(images).cls_BD, before)


def test_hooks_are_seen_where_compiling_is_switched_off() -> None:
    torch.compiler.reset()
    eager, compiled = network().eval(), network().eval()
    compile_blocks(compiled, backend="aot_eager")
    images = torch.rand(2, 3, 32, 32)
    compiled.embed(images)
    with torch.compiler.set_stance("force_eager"):
        found = attention_maps(compiled, images)
    assert torch.equal(found, attention_maps(eager, images))


@pytest.mark.parametrize("steps", [5])
def test_a_compiled_run_learns_as_an_eager_one(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """Masked patches are filled up to one length; iBOT, Sinkhorn-Knopp and teacher alike."""
    torch.compiler.reset()
    monkeypatch.setattr(
        training_state, "compile_blocks", lambda e: compile_blocks(e, backend="aot_eager")
    )
    plain = (f"steps={steps}", "precision=fp32", "optimizer.warmup=0")
    for name in ("none", "blocks"):
        config = micro_config(*plain, f"engine.compile={name}")
        pretrain_tiles(config, catalogue, tmp_path / name, device="cpu")
    eager, compiled = (read_metrics(tmp_path / n / "metrics.jsonl") for n in ("none", "blocks"))
    for here, there in zip(eager, compiled, strict=True):
        assert there["loss"] == pytest.approx(here["loss"], rel=1e-4)


def test_no_step_masks_more_than_the_bound() -> None:
    from anlage.tiles.masking import block_masks

    objective = micro_config().objective
    for n_tiles, edge in ((4, 4), (16, 7), (64, 16)):
        bound = most_masked(objective, n_images=2 * n_tiles, n_patches=edge**2)
        counts = []
        for step in range(40):
            g = list(range(step * n_tiles, (step + 1) * n_tiles))
            masks = block_masks(
                g, n_views=2, grid=(edge, edge), seed=3,
                share=objective.masked_share, ratio=objective.mask_ratio,
            )  # fmt: skip
            counts.append(int(masks.sum()))
        assert max(counts) <= bound
        assert bound <= max(max(counts) * 3, 64)


@pytest.mark.slow
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_inductor_gives_the_same_within_rounding(recompute: str) -> None:
    torch.compiler.reset()
    eager, compiled = network(stochastic_depth=0.4), network(stochastic_depth=0.4)
    compile_blocks(compiled)
    pairs = zip(passed(eager, 1, recompute), passed(compiled, 1, recompute), strict=True)
    for wanted, found in pairs:
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
