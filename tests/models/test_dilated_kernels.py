"""Kernels of dilated attention against the formula, and on a GPU against the CPU."""

from types import SimpleNamespace

import pytest
import torch

from anlage.models import dilated_attention as attention
from anlage.models import dilated_kernels as kernels
from anlage.models.dilated_attention import Branch, dilated_self_attention, plan_dilated


def heads(dtype=torch.float64, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    parts = torch.randn(4, 5, 2, 33, 8, generator=generator, dtype=torch.float64)
    query, key, value, above = parts.to(dtype).to(device)
    return (query, key, value), above


def bias(device="cpu"):
    is_token_GN = torch.arange(33) < torch.tensor([33, 1, 17, 32, 5])[:, None]
    return torch.zeros(5, 33).masked_fill(~is_token_GN, -torch.inf).to(device)


def plan(lengths, branches, n_heads, device="cpu", pad="zero"):
    return plan_dilated(
        lengths,
        branches=[Branch(*branch) for branch in branches],
        n_heads=n_heads,
        head_phase="torchscale",
        pad=pad,
        device=device,
    )


@pytest.mark.parametrize("kernel", [kernels.CPU, kernels.MATH], ids=["cpu", "math"])
@pytest.mark.parametrize("is_masked", [False, True])
def test_kernels_equal_the_formula(kernel, is_masked, monkeypatch):
    monkeypatch.setattr(kernels, "CHUNK_LOGITS", 5 * 2 * 33 * 10)  # chunks of ten queries
    (query, key, value), above = heads()
    own = bias() if is_masked else None
    leaves = [part.clone().requires_grad_() for part in (query, key, value)]
    logits = leaves[0] @ leaves[1].mT / 8**0.5
    if is_masked:
        logits = logits + own[:, None, None].double()
    expected = logits.softmax(-1) @ leaves[2]
    attended = kernel.forward((query, key, value), own)
    torch.testing.assert_close(attended.out, expected.detach())
    torch.testing.assert_close(attended.sums, logits.logsumexp(-1).detach())
    grads = kernel.backward(above, (query, key, value), own, attended)
    for ours, theirs in zip(grads, torch.autograd.grad(expected, leaves, above), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernel", [kernels.CPU, kernels.MATH], ids=["cpu", "math"])
def test_sums_are_single_precision_at_least(kernel, dtype):
    given, above = heads(dtype)
    attended = kernel.forward(given, bias())
    assert (attended.out.dtype, attended.sums.dtype) == (dtype, torch.float32)
    exact = kernels.MATH.forward(tuple(part.double() for part in given), bias())
    torch.testing.assert_close(attended.sums.double(), exact.sums, rtol=0, atol=2e-4)
    grads = kernel.backward(above, given, bias(), attended)
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("pad", ["zero", "masked"])
def test_the_plain_formula_stands_in_for_a_kernel(pad, monkeypatch):
    lengths, branches = [40, 3, 1, 33], [(8, 1), (12, 5), (100, 4)]
    planned = plan(lengths, branches, 3, pad=pad)
    qkv = torch.randn(77, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    found = []
    for kernel in (kernels.CPU, kernels.MATH):
        monkeypatch.setattr(attention, "choose_kernel", lambda *_, kernel=kernel: kernel)
        out = dilated_self_attention(qkv, planned)
        found.append((out, *torch.autograd.grad(out.square().sum(), qkv)))
    for fast, plain in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain)


def test_autocast_changes_nothing(monkeypatch):
    monkeypatch.setattr(attention, "choose_kernel", lambda *_: kernels.MATH)
    planned, qkv = plan([30], [(8, 1), (12, 5)], 3), torch.randn(30, 3, 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        under = dilated_self_attention(qkv, planned)
    torch.testing.assert_close(under, dilated_self_attention(qkv, planned), rtol=0, atol=0)


def test_kernels_of_cuda_take_and_give_these_shapes():
    """Their operators exist, with these arguments: all that can be said without a GPU."""
    with torch.device("meta"):
        single = tuple(torch.randn(3, 4, 2, 70, 48))
        half = tuple(torch.randn(3, 4, 2, 70, 48, dtype=torch.bfloat16))
        own = torch.zeros(4, 70)
    for kernel, given, masked in (
        (kernels.EFFICIENT, single, own),
        (kernels.EFFICIENT, single, None),
        (kernels.FLASH, half, None),
    ):
        attended = kernel.forward(given, masked)
        assert attended.out.shape == given[0].shape
        assert attended.sums.shape == given[0].shape[:3]
        grads = kernel.backward(attended.out, given, masked, attended)
        assert [grad.shape for grad in grads] == [given[0].shape] * 3


@pytest.mark.gpu
@pytest.mark.parametrize("pad", ["zero", "masked"])
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-3), (torch.bfloat16, 2e-2), (torch.float64, 1e-10)]
)
@pytest.mark.parametrize("lengths", [[3001], [64, 51, 1, 77], [1500, 700]])
def test_a_gpu_gives_what_the_cpu_gives(pad, dtype, bound, lengths):
    branches = [(1024, 1), (600, 2), (910, 4), (5000, 16)]
    generator = torch.Generator().manual_seed(0)
    qkv, above = (
        torch.randn(sum(lengths), n, 16, 48, generator=generator).to(dtype) for n in (3, 1)
    )
    found = []
    for device, own_dtype in (("cpu", torch.float64), ("cuda", dtype)):
        leaf = qkv.to(device, own_dtype).requires_grad_()
        out = dilated_self_attention(leaf, plan(lengths, branches, 16, device, pad))
        (grad,) = torch.autograd.grad(out, leaf, above[:, 0].to(device, own_dtype))
        found.append((out.detach().cpu().double(), grad.cpu().double()))
    for exact, ours in zip(*found, strict=True):
        assert (ours - exact).norm() < bound * exact.norm()


@pytest.mark.parametrize(
    ("width", "has_efficient", "chosen"),
    [(64, True, "FLASH"), (8, True, "FLASH"), (12, True, "EFFICIENT"), (12, False, "MATH")],
)
def test_flash_attention_is_only_for_heads_of_a_multiple_of_eight(
    monkeypatch, width, has_efficient, chosen
):
    """torch's own test of whether the kernel takes its arguments does not look at that."""
    asked = SimpleNamespace(
        SDPAParams=lambda *parts: parts,
        can_use_flash_attention=lambda _: True,
        can_use_efficient_attention=lambda _: has_efficient,
    )
    monkeypatch.setattr(kernels, "backend", asked)
    head = SimpleNamespace(device=torch.device("cuda"), shape=(5, 2, 33, width))
    assert kernels.choose_kernel((head, head, head), None) is getattr(kernels, chosen)
