"""Linear layers in float8: rounding beside one written out, names, refusals, and runs.

Products are emulated; what a GPU makes of them is tested with ``-m gpu``.
"""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from same_run import stopped_after, tensors_of
from torch import nn

from anlage.errors import DeviceError, RecipeError
from anlage.models.layers.recompute import with_gain
from anlage.models.vit import VisionTransformer
from anlage.slides.catalogue import Catalogue
from anlage.training import float8, training_state
from anlage.training.compiled import compile_parts
from anlage.training.float8 import refuse_without_float8, use_float8
from anlage.training.log import read_metrics
from anlage.training.tile_pretrain import pretrain_tiles
from micro_recipe import micro_config

RUN = ("precision=fp32", "model.width=32", "model.n_heads=2", "optimizer.peak_lr=1e-4")


def network(*, width: int = 32, **other: object) -> VisionTransformer:
    torch.manual_seed(0)
    sizes = {"image_px": 32, "patch_px": 8, "width": width, "depth": 2, "n_heads": 2}
    return VisionTransformer(**sizes, layer_scale=0.5, **other).train()


def rounded(rows: torch.Tensor) -> torch.Tensor:
    """Each row over the power of two that brings its largest number just below 448, in E4M3."""
    largest = rows.abs().amax(dim=1, keepdim=True)
    scale = torch.exp2(torch.floor(torch.log2(448 / largest)))
    return (rows * scale).to(torch.float8_e4m3fn).float() / scale


def passed(model: VisionTransformer, recompute: str = "none") -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    images = [torch.randn(n, 3, px, px, generator=draw) for n, px in ((3, 32), (5, 16))]
    model.zero_grad()
    seen = model(images, recompute=recompute)
    loss = sum(part.cls_BD.square().sum() + part.patches_BND.sin().sum() for part in seen)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def test_a_layer_multiplies_rounded_rows_and_its_weights_learn_from_whole_ones() -> None:
    model = network()
    plain = model.blocks[0].attn.qkv
    use_float8(model, emulate=True)
    layer = model.blocks[0].attn.qkv
    assert layer.weight is plain.weight
    draw = torch.Generator().manual_seed(2)
    rows, gradient = (torch.randn(7, n, generator=draw) for n in (32, 96))
    rows.requires_grad_()
    out = layer(rows)
    weight = layer.weight.detach()
    wanted = rounded(rows.detach()) @ rounded(weight).T + layer.bias
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)
    assert (out - plain(rows)).abs().max() > 1e-3
    out.backward(gradient)
    torch.testing.assert_close(layer.weight.grad, gradient.T @ rows.detach())
    exact = gradient @ weight
    assert 1e-4 < (rows.grad - exact).norm() / exact.norm() < 0.06


def test_layer_scale_in_the_weights_is_rounded_with_them() -> None:
    model = network()
    use_float8(model, emulate=True)
    block = model.blocks[0]
    rows = torch.randn(7, 32, generator=torch.Generator().manual_seed(2))
    weight, bias = 0.5 * block.attn.proj.weight, 0.5 * block.attn.proj.bias
    wanted = rounded(rows) @ rounded(weight).T + bias
    torch.testing.assert_close(with_gain(block.attn.proj, block.ls1)(rows), wanted)


def test_names_and_weights_stay_and_everything_else_is_as_it_was() -> None:
    model, plain = network(), network()
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    use_float8(model, emulate=True)
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == before
    changed = [
        name
        for (name, one), other in zip(model.named_modules(), plain.modules(), strict=True)
        if type(one) is not type(other)
    ]
    of_block = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert changed == [f"blocks.{number}.{name}" for number in range(2) for name in of_block]
    assert all(isinstance(model.get_submodule(name), nn.Linear) for name in changed)


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_it_goes_with_recomputing_and_compiling(recompute: str) -> None:
    torch.compiler.reset()
    alone, both, exact = network(), network(), passed(network())
    use_float8(alone, emulate=True)
    use_float8(both, emulate=True)
    compile_parts([both], backend="aot_eager")
    wanted, found = passed(alone), passed(both, recompute)
    # weights that LayerScale was multiplied into are rounded elsewhere
    near = 0.1 if recompute == "selective" else 1e-3
    for here, there in zip(found, wanted, strict=True):
        assert (here - there).norm() <= near * there.norm()
    noise = torch.cat([(a - b).flatten() for a, b in zip(found[1:], exact[1:], strict=True)])
    whole = torch.cat([gradient.flatten() for gradient in exact[1:]])
    assert 1e-3 < noise.norm() / whole.norm() < 0.1


def test_layers_that_do_not_fit_stay_plain_and_are_named(caplog: pytest.LogCaptureFixture) -> None:
    model = network(feed_forward="swiglu", mlp_ratio=3.5)  # 2/3 of 112, up to 8: 80, 160 with gate
    with caplog.at_level(logging.INFO):
        use_float8(model, emulate=True)
    assert not caplog.messages
    model = network(feed_forward="swiglu")  # 2/3 of 128, up to 8: 88, 176 with the gate
    with caplog.at_level(logging.INFO):
        use_float8(model, emulate=True)
    assert "mlp.fc2 of each block have a side that is no multiple of 16" in caplog.text
    assert type(model.blocks[1].mlp.fc2) is nn.Linear
    assert type(model.blocks[1].mlp.fc1) is not nn.Linear


def test_what_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="multiples of 16; got none among those of blocks 24"):
        use_float8(network(width=24, mlp_ratio=3.0), emulate=True)
    with pytest.raises(DeviceError, match=r"cpu: has no float8 products.*engine\.linears=plain"):
        refuse_without_float8(torch.device("cpu"), torch.bfloat16)
    gpu, cuda = torch.device("cuda"), torch.cuda
    monkeypatch.setattr(cuda, "get_device_name", lambda _: "NVIDIA A100")
    monkeypatch.setattr(cuda, "get_device_capability", lambda _: (8, 0))
    with pytest.raises(DeviceError, match=r"NVIDIA A100 \(8\.0\): .*capability 8\.9 or more"):
        refuse_without_float8(gpu, torch.bfloat16)
    monkeypatch.setattr(cuda, "get_device_capability", lambda _: (8, 9))
    refuse_without_float8(gpu, torch.bfloat16)
    with pytest.raises(RecipeError, match="needs precision=bf16; got float32"):
        refuse_without_float8(gpu, None)
    monkeypatch.setattr(float8.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(RecipeError, match=r"pip install 'anlage\[float8\]'"):
        use_float8(network(), emulate=True)


def test_a_run_on_a_cpu_is_refused(catalogue: Catalogue, tmp_path: Path) -> None:
    config = micro_config("engine.linears=float8")
    with pytest.raises(DeviceError, match="cpu: has no float8 products"):
        pretrain_tiles(config, catalogue, tmp_path / "run", device="cpu")


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs may ask for float8 on a CPU."""
    monkeypatch.setattr(training_state, "refuse_without_float8", lambda *_: None)
    monkeypatch.setattr(training_state, "use_float8", lambda e: use_float8(e, emulate=True))


@pytest.mark.usefixtures("emulated")
def test_a_run_learns_as_a_plain_one_and_goes_on_with_float8(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    def run(name: str, *changes: str, steps: int = 10, resume: bool = False) -> list[float]:
        config = micro_config(*RUN, f"steps={steps}", *changes)
        pretrain_tiles(config, catalogue, tmp_path / name, device="cpu", resume=resume)
        return [row["loss"] for row in read_metrics(tmp_path / name / "metrics.jsonl")]

    plain, narrow = run("plain"), run("float8", "engine.linears=float8")
    assert narrow == pytest.approx(plain, rel=0.04)
    assert narrow != pytest.approx(plain, rel=1e-6)
    mine, theirs = tensors_of(tmp_path / "float8"), tensors_of(tmp_path / "plain")
    assert {n: (t.shape, t.dtype) for n, t in mine.items()} == {
        n: (t.shape, t.dtype) for n, t in theirs.items()
    }
    with stopped_after(4):
        run("both")
    both = run("both", "engine.linears=float8", resume=True)
    assert both[:4] == plain[:4]
    assert both[4:] == pytest.approx(plain[4:], rel=0.04)
    assert both[4:] != plain[4:]


@pytest.mark.gpu
def test_a_gpu_multiplies_as_emulated_and_a_run_learns(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs a CUDA device of compute capability 8.9 or more")
    emulated, real = (network().cuda() for _ in range(2))
    use_float8(emulated, emulate=True)
    use_float8(real)
    images = torch.randn(4, 3, 32, 32, device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        wanted, found = (model.embed(images).cls_BD for model in (emulated, real))
    assert (found - wanted).norm() < 0.02 * wanted.norm()
    losses = {}
    for name in ("plain", "float8"):
        changes = ("precision=bf16", "engine.compile=blocks", f"engine.linears={name}")
        config = micro_config(*RUN[1:], "steps=10", *changes)
        pretrain_tiles(config, catalogue, tmp_path / name, device="cuda")
        losses[name] = [row["loss"] for row in read_metrics(tmp_path / name / "metrics.jsonl")]
    assert losses["float8"] == pytest.approx(losses["plain"], rel=3e-2)
