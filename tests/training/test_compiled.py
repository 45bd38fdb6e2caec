"""Compiled blocks and heads: what eager ones give, in one graph for each list of shapes."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest
import torch
from same_run import before_steps, metrics_of
from torch import distributed as dist
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parallel import DistributedDataParallel
from watched import make_watched_tiles

from anlage.distributed import ALONE
from anlage.errors import DeviceError
from anlage.explain.attention import attention_maps
from anlage.models.projection_head import ProjectionHead
from anlage.models.vit import VisionTransformer
from anlage.slides.catalogue import Catalogue
from anlage.training import parallel, tile_pretrain, training_state
from anlage.training.compiled import compile_parts, compiled_modules
from anlage.training.engine_config import Engine
from anlage.training.networks import frozen_copy
from anlage.training.parallel import Layout
from anlage.training.step_views import most_masked
from anlage.training.tile_pretrain import pretrain_tiles
from micro_recipe import micro_config


def network(**other: object) -> VisionTransformer:
    torch.manual_seed(0)
    sizes = {"image_px": 32, "patch_px": 8, "width": 24, "depth": 3, "n_heads": 3}
    return VisionTransformer(**(sizes | other), layer_scale=0.5).train()


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
    compile_parts([compiled], backend=counter)
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
    compile_parts([compiled], backend="aot_eager")
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
        compile_parts([model], backend=counter)
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
    compile_parts([compiled], backend=counter)
    copied = frozen_copy(compiled)
    assert compiled.state_dict().keys() == copied.state_dict().keys() == state
    images = torch.ones(2, 3, 32, 32)
    before = compiled.embed(images).cls_BD
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.add_(0.1)
    copied.embed(images)
    assert counter.frame_count == 1  # that of the first network
    assert torch.equal(compiled.embed(images).cls_BD, before)


def test_blocks_stay_whole_under_ddp() -> None:
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    model = network(width=288)  # 4 MB a block
    compile_parts([model], backend=counter)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        outputs = DistributedDataParallel(model)([torch.ones(2, 3, 32, 32)])
        sum(part.sum() for part in outputs[0]).backward()
    finally:
        dist.destroy_process_group()
    assert counter.frame_count == 1


def test_hooks_are_seen_where_compiling_is_switched_off() -> None:
    torch.compiler.reset()
    eager, compiled = network().eval(), network().eval()
    compile_parts([compiled], backend="aot_eager")
    images = torch.rand(2, 3, 32, 32)
    compiled.embed(images)
    with torch.compiler.set_stance("force_eager"):
        found = attention_maps(compiled, images)
    assert torch.equal(found, attention_maps(eager, images))


@pytest.mark.parametrize("n_layers", [1, 3])
def test_a_compiled_head_is_the_eager_one(n_layers: int) -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    eager = ProjectionHead(width=24, n_prototypes=16, hidden=20, bottleneck=8, n_layers=n_layers)
    compiled = copy.deepcopy(eager)
    counter = CompileCounterWithBackend("aot_eager")
    compile_parts([compiled], backend=counter)
    for n_rows in (6, 64):
        tokens = torch.randn(n_rows, 24)
        found = [head(tokens).square().sum() for head in (eager, compiled)]
        torch.testing.assert_close(found[1], found[0])
        for loss in found:
            loss.backward()
        for mine, theirs in zip(compiled.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad)
    assert counter.frame_count == 2


PLAIN = ("precision=fp32", "optimizer.warmup=0")
SPECIAL = {
    "tied": ((), 6),
    "untied, full": (("engine.recompute=full", "patch_head={n_prototypes: 32, hidden: 20}"), 6),
    "in parts": (("accumulate=2", "engine.recompute=selective"), 7),
    "gram, dino alone": (("objective.ibot_weight=0", "objective.gram={start: 0.4}"), 4),
}


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> CompileCounterWithBackend:
    """What runs compile with: traced for autograd, and run as it was written."""
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(training_state, "compile_parts", partial(compile_parts, backend=counter))
    return counter


@pytest.mark.parametrize(("special", "n_graphs"), SPECIAL.values(), ids=SPECIAL)
def test_a_compiled_run_learns_as_an_eager_one_and_compiles_in_its_first_step(
    catalogue: Catalogue,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    backend: CompileCounterWithBackend,
    special: tuple[str, ...],
    n_graphs: int,
) -> None:
    """Blocks and heads of student and teacher; masked patches are filled up to one length."""
    graphs = []
    before_steps(monkeypatch, lambda *_: graphs.append(backend.frame_count))
    for name in ("none", "blocks"):
        config = micro_config(*PLAIN, "steps=5", *special, f"engine.compile={name}")
        pretrain_tiles(config, catalogue, tmp_path / name, device="cpu")
    assert graphs == [0] * 6 + [n_graphs] * 4
    eager, compiled = (metrics_of(tmp_path / name) for name in ("none", "blocks"))
    for here, there in zip(eager, compiled, strict=True):
        assert there["loss"] == pytest.approx(here["loss"], rel=1e-4)


class _Outlived:
    """Counts what compiled modules gave that is still there when the next step begins."""

    def __init__(self) -> None:
        self.given: list[StorageWeakRef] = []
        self.n_given = 0
        self.n_left: list[int] = []

    def compile_parts(self, parts: Iterable[nn.Module], *, replays: bool) -> None:
        assert replays
        for module in (module for part in parts for module in compiled_modules(part)):
            module.register_forward_hook(self._note)
            for parameter in module.parameters():
                if parameter.requires_grad:
                    parameter.register_hook(lambda gradient: self._note(None, None, gradient))

    def _note(self, _module: object, _given: object, tensor: torch.Tensor) -> None:
        self.given.append(StorageWeakRef(tensor.untyped_storage()))
        self.n_given += 1

    def mark(self) -> None:
        self.n_left.append(sum(not reference.expired() for reference in self.given))
        self.given.clear()


@pytest.mark.parametrize(
    "special",
    [
        *(special for special, _ in SPECIAL.values()),
        ("objective.targets=centering", "objective.spread=koleo", "precision=bf16"),
    ],
    ids=[*SPECIAL, "centres, bf16"],
)
def test_nothing_of_a_step_is_left_when_its_graphs_are_replayed(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, special: tuple[str, ...]
) -> None:
    """Memory of CUDA graphs is used anew in each step; here without graphs, steps read late."""
    outlived, begin = _Outlived(), tile_pretrain._Report.__init__

    def begun(self, *given) -> None:
        begin(self, *given)
        self._reads_late = True

    monkeypatch.setattr(tile_pretrain._Report, "__init__", begun)
    monkeypatch.setattr(parallel, "_refuse_graphs_elsewhere", lambda *_: None)
    monkeypatch.setattr(training_state, "compile_parts", outlived.compile_parts)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", outlived.mark)
    config = micro_config("steps=5", *special, "engine.compile=graphs")
    pretrain_tiles(config, catalogue, tmp_path, device="cpu")
    assert outlived.n_left == [0] * 5
    assert outlived.n_given > 5 * 2 * 3


def test_graphs_are_refused_where_there_are_none() -> None:
    for kind in ("fsdp2", "hsdp"):
        with pytest.raises(ValueError, match=f"weights that stay in place.*got kind={kind}"):
            Engine(kind=kind, compile="graphs")
    with pytest.raises(DeviceError, match=r"cpu: has no CUDA graphs.*engine\.compile=blocks"):
        Layout.of(Engine(compile="graphs"), ALONE, torch.device("cpu"))


@pytest.mark.slow
def test_looks_at_a_compiled_run_are_those_at_an_eager_one(
    catalogue: Catalogue,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    backend: CompileCounterWithBackend,
) -> None:
    """They are of other shapes, hook into blocks, and compile nothing."""
    graphs = []
    before_steps(monkeypatch, lambda *_: graphs.append(backend.frame_count))
    watched = ("steps=5", "watch.every=2", "watch.neighbours=3", "watch.probe_steps=5")
    for name in ("none", "blocks"):
        config = micro_config(*PLAIN, *watched, f"engine.compile={name}")
        tiles = make_watched_tiles()
        pretrain_tiles(config, catalogue, tmp_path / name, device="cpu", watched=tiles)
    assert graphs == [0] * 6 + [6] * 4
    eager, compiled = (metrics_of(tmp_path / name) for name in ("none", "blocks"))
    for here, there in zip(eager, compiled, strict=True):
        assert there == pytest.approx(here, rel=1e-3)
    pictures = [sorted((tmp_path / n / "watch").iterdir()) for n in ("none", "blocks")]
    assert [path.name for path in pictures[0]] == [path.name for path in pictures[1]]
    assert len(pictures[0]) == 3


@pytest.mark.long
def test_compiled_steps_in_bf16_differ_from_eager_ones_by_the_noise_of_bf16(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    """That noise: how far bf16 is from float32, both eager, over the same 20 steps."""
    torch.compiler.reset()
    losses = {}
    for name, chosen in {
        "fp32": ("precision=fp32",),
        "bf16": ("precision=bf16",),
        "compiled": ("precision=bf16", "engine.compile=blocks"),
    }.items():
        config = micro_config("steps=20", "optimizer.warmup=0", *chosen)
        pretrain_tiles(config, catalogue, tmp_path / name, device="cpu")
        losses[name] = torch.tensor([row["loss"] for row in metrics_of(tmp_path / name)])
    noise = (losses["bf16"] - losses["fp32"]).square().mean().sqrt()
    assert (losses["compiled"] - losses["bf16"]).square().mean().sqrt() <= noise
    assert noise < 0.02 * losses["fp32"].mean()  # 0.0101 of it when this was written


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
    compile_parts([compiled])
    pairs = zip(passed(eager, 1, recompute), passed(compiled, 1, recompute), strict=True)
    for wanted, found in pairs:
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
