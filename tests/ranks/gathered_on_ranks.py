"""What each of two ranks checks of weights gathered in bf16; the test starts it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from torch import nn

from anlage.distributed import Ranks, process_group
from anlage.models.vit import VisionTransformer
from anlage.training.engine_config import Engine
from anlage.training.float8 import use_float8
from anlage.training.networks import frozen_copy
from anlage.training.parallel import Layout

torch.set_num_threads(1)
CPU = torch.device("cpu")
FORMATS = (torch.bfloat16, None)


def network() -> VisionTransformer:
    torch.manual_seed(8)
    sizes = {"image_px": 16, "patch_px": 8, "width": 32, "depth": 2, "n_heads": 2}
    return VisionTransformer(**sizes, n_registers=1, layer_scale=0.5, qk_norm=True).train()


def autocast(dtype: torch.dtype | None) -> torch.autocast:
    return torch.autocast("cpu", dtype=dtype, enabled=dtype is not None)


@contextmanager
def as_on_a_gpu(dtype: torch.dtype | None) -> Iterator[None]:
    """What torchao asks of autocast is answered as on a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        if dtype is not None:
            patch.setattr(torch, "is_autocast_enabled", lambda *_: True)
            patch.setattr(torch, "get_autocast_gpu_dtype", lambda: dtype)
        yield


def passed(
    model: nn.Module,
    ranks: Ranks,
    dtype: torch.dtype | None,
    *,
    recompute: str = "none",
    is_float8: bool = False,
) -> torch.Tensor:
    """Loss of this rank's own images; its gradients are in the network."""
    draw = torch.Generator().manual_seed(ranks.rank)
    images = [torch.randn(n, 3, px, px, generator=draw) for n, px in ((3, 16), (2, 32))]
    with autocast(dtype), as_on_a_gpu(dtype if is_float8 else None):
        seen = model(images, recompute=recompute)
        loss = sum(part.cls_BD.square().sum() + part.patches_BND.sin().sum() for part in seen)
    loss.backward()
    return loss.detach()


def dtypes_in_a_block(ranks: Ranks, dtype: torch.dtype | None) -> None:
    """Linear layers come in the run's format; norms, LayerScale and tokens stay float32."""
    model = network()
    Layout.of(Engine(kind="fsdp2"), ranks, CPU, dtype=dtype).spread(model)
    seen: dict[str, torch.dtype] = {}

    def note(block: nn.Module, inputs: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        seen.update({name: p.dtype for name, p in block.named_parameters()})
        seen.update(tokens=inputs[0].dtype, out=out.dtype)

    def noted(block: nn.Module, *_: object) -> None:
        seen.update({name: p.dtype for name, p in block.named_parameters()})

    model.blocks[1].register_forward_pre_hook(noted)
    model.blocks[1].register_forward_hook(note, prepend=True)
    passed(model, ranks, dtype)
    linears = {name for name in seen if name.startswith(("attn.qkv", "attn.proj", "mlp"))}
    assert len(linears) == 8
    assert {seen.pop(name) for name in linears} == {dtype or torch.float32}
    assert set(seen.values()) == {torch.float32}
    assert {p.dtype for p in model.parameters()} == {torch.float32}  # the shards themselves


def same_as_whole(
    ranks: Ranks,
    dtype: torch.dtype | None,
    *,
    kind: str = "fsdp2",
    recompute: str = "none",
    is_compiled: bool = False,
    is_float8: bool = False,
) -> None:
    """Loss and gradients are to the bit those of networks that every rank holds whole.

    Compilers and ``selective`` round elsewhere.
    """
    whole, sharded = network(), network()
    for model in (whole, sharded):
        if is_float8:
            for parameter in model.parameters():  # else it matters which rounding comes first
                parameter.data = parameter.data.bfloat16().float()
            use_float8(model, emulate=True)
    if is_compiled:
        for block in sharded.blocks:
            block.compile(fullgraph=True, dynamic=False, backend="aot_eager")
    teacher = frozen_copy(network())
    layout = Layout.of(Engine(kind=kind), ranks, CPU, dtype=dtype)
    for model in (sharded, teacher):
        layout.spread(model)
    apart = 0.02 if is_compiled or recompute == "selective" else 0.0
    wanted = passed(whole, ranks, dtype, is_float8=is_float8)
    found = passed(sharded, ranks, dtype, recompute=recompute, is_float8=is_float8)
    torch.testing.assert_close(found, wanted, rtol=apart, atol=0.0)
    errors, gradients = [], []
    for (name, mine), theirs in zip(sharded.named_parameters(), whole.parameters(), strict=True):
        if theirs.grad is None:
            assert mine.grad is None
            continue
        assert mine.grad.dtype == torch.float32
        found, average = mine.grad.full_tensor(), ranks.mean(theirs.grad)
        assert apart or torch.equal(found, average), name
        errors.append((found - average).flatten())
        gradients.append(average.flatten())
    assert torch.cat(errors).norm() <= apart * torch.cat(gradients).norm()
    images = torch.ones(2, 3, 16, 16)
    if not is_float8:
        with torch.no_grad(), autocast(dtype):
            seen = [model([images])[0].cls_BD for model in (teacher, whole)]
        assert torch.equal(*seen)


def main() -> None:
    with process_group("cpu", timeout_s=60) as ranks:
        for dtype in FORMATS:
            dtypes_in_a_block(ranks, dtype)
            same_as_whole(ranks, dtype)
            same_as_whole(ranks, dtype, kind="hsdp")
            same_as_whole(ranks, dtype, recompute="full")
            same_as_whole(ranks, dtype, recompute="selective")
            same_as_whole(ranks, dtype, is_compiled=True)
            same_as_whole(ranks, dtype, is_float8=True)
        dist.barrier()
        sys.stdout.write("all equal")


if __name__ == "__main__":
    main()
