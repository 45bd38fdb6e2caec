"""Dilated attention against dense attention under masks, torchscale's numbers, and its facts."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from golden.dilated_inputs import CASES, inputs_of
from torch.utils.checkpoint import checkpoint

from anlage.models import dilated_plan
from anlage.models.dilated_attention import (
    Branch,
    attention_of_token,
    dilated_attention,
    dilated_self_attention,
    plan_dilated,
)
from reference.dilated import dense_attention, dense_weights

GOLDEN = Path(__file__).parents[1] / "golden" / "dilated_attention.json"
GROWING = [(16, 1), (11, 2), (23, 4), (100, 8)]
SPARSE = [(8, 3), (40, 16)]  # some tokens in no branch
LENGTHS = [37, 1, 64, 5, 16]
N_TOKENS = sum(LENGTHS)
RULES = pytest.mark.parametrize("rule", ["torchscale", "paper"])
PADS = pytest.mark.parametrize("pad", ["zero", "masked"])


def heads(n_tokens=N_TOKENS, n_heads=5, width=6, *, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, n_tokens, n_heads, width, generator=generator, dtype=torch.float64).to(
        dtype
    )


def plan(lengths=LENGTHS, branches=GROWING, n_heads=5, rule="torchscale", pad="masked"):
    return plan_dilated(
        lengths,
        branches=[Branch(*branch) for branch in branches],
        n_heads=n_heads,
        head_phase=rule,
        pad=pad,
        device="cpu",
    )


def with_gradients(attend, parts):
    leaves = [part.clone().requires_grad_() for part in parts]
    out = attend(*leaves)
    above = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out.detach(), *torch.autograd.grad(out, leaves, above)]


@RULES
@PADS
@pytest.mark.parametrize("branches", [GROWING, SPARSE])
@pytest.mark.parametrize("n_heads", [1, 5, 8])
def test_values_and_gradients_equal_dense_attention(rule, pad, branches, n_heads):
    parts = heads(n_heads=n_heads)
    settings = {"branches": branches, "rule": rule, "pad": pad}
    dense = with_gradients(lambda *own: dense_attention(*own, LENGTHS, **settings), parts)
    planned = plan(branches=branches, n_heads=n_heads, rule=rule, pad=pad)
    found = with_gradients(lambda *own: dilated_attention(*own, planned), parts)
    for ours, theirs in zip(found, dense, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    single = with_gradients(lambda *own: dilated_attention(*own, planned), parts.float())
    for ours, theirs in zip(single, dense, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-6, atol=2e-6)


@RULES
@PADS
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 33, 48, 49])
def test_lengths_that_do_and_do_not_divide(rule, pad, length):
    branches, parts = [(16, 1), (24, 4), (32, 5)], heads(length)
    planned = plan([length], branches, rule=rule, pad=pad)
    dense = dense_attention(*parts, [length], branches=branches, rule=rule, pad=pad)
    torch.testing.assert_close(dilated_attention(*parts, planned), dense, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("dtype", "atol"), [(torch.float64, 1e-8), (torch.float32, 1e-6)], ids=["double", "single"]
)
def test_torchscale_gives_these_values_and_gradients(name, dtype, atol):
    case, golden = CASES[name], json.loads(GOLDEN.read_text())[name]
    *parts, above = (part.to(dtype) for part in inputs_of(case))
    leaves = [part.requires_grad_() for part in parts]
    planned = plan([case.n_tokens], case.branches, case.n_heads, pad="zero")
    out = dilated_attention(*leaves, planned)
    grads = torch.autograd.grad(out, leaves, above)
    found = dict(zip(("query", "key", "value"), grads, strict=True)) | {"out": out}
    for part, numbers in golden.items():
        expected = torch.tensor(numbers, dtype=torch.float64)
        torch.testing.assert_close(
            found[part].detach().double().flatten(), expected, rtol=1e-6, atol=atol
        )


@pytest.mark.skipif("TORCHSCALE_SRC" not in os.environ, reason="needs TORCHSCALE_SRC")
def test_torchscale_still_gives_them(tmp_path):
    script, output = GOLDEN.with_name("regenerate_dilated_attention.py"), tmp_path / "again.json"
    subprocess.run([sys.executable, script, os.environ["TORCHSCALE_SRC"], output], check=True)
    again, golden = json.loads(output.read_text()), json.loads(GOLDEN.read_text())
    assert again.keys() == golden.keys()
    for name, parts in golden.items():
        for part, numbers in parts.items():
            assert again[name][part] == pytest.approx(numbers, abs=1e-7)


@PADS
def test_gradient_of_one_branch_is_that_of_differences(pad):
    planned = plan([9, 1, 4], [(6, 2)], n_heads=3, pad=pad)
    qkv = torch.stack(list(heads(14, 3, 2)), dim=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda own: dilated_self_attention(own, planned), (qkv,))


def test_weights_of_branches_carry_no_gradient():
    """With a second branch of the same pattern, nothing changes, not even the gradient."""
    parts = heads(20)
    one, two = plan([20], [(8, 1)]), plan([20], [(8, 1), (8, 1)])
    once = with_gradients(lambda *own: dilated_attention(*own, one), parts)
    twice = with_gradients(lambda *own: dilated_attention(*own, two), parts)
    for alone, doubled in zip(once, twice, strict=True):
        torch.testing.assert_close(alone, doubled)


@PADS
def test_bf16_is_close(pad):
    parts, planned = heads(), plan(pad=pad)
    exact = with_gradients(lambda *own: dilated_attention(*own, planned), parts)
    half = with_gradients(lambda *own: dilated_attention(*own, planned), parts.bfloat16())
    for full, short in zip(exact, half, strict=True):
        assert short.dtype == torch.bfloat16
        assert (short.double() - full).norm() < 0.01 * full.norm()


@PADS
@pytest.mark.parametrize("lengths", [LENGTHS, [300, 64, 299, 1]])
def test_a_bag_gives_the_same_whatever_it_is_batched_with(pad, lengths):
    parts = heads(sum(lengths))
    whole = with_gradients(lambda *own: dilated_attention(*own, plan(lengths, pad=pad)), parts)
    above = torch.linspace(-1, 1, parts[0].numel(), dtype=torch.float64).view_as(parts[0])
    first = 0
    for length in lengths:
        own = slice(first, first + length)
        leaves = [part[own].clone().requires_grad_() for part in parts]
        out = dilated_attention(*leaves, plan([length], pad=pad))
        alone = [out, *torch.autograd.grad(out, leaves, above[own])]
        for together, by_itself in zip(whole, alone, strict=True):
            torch.testing.assert_close(together[own], by_itself, rtol=0, atol=1e-12)
        first += length


def test_order_of_bags_is_that_of_their_outputs():
    lengths, order = [37, 20, 5], [2, 0, 1]
    parts = heads(sum(lengths))
    bags = torch.split(dilated_attention(*parts, plan(lengths)), lengths)
    moved = [torch.cat([torch.split(part, lengths)[bag] for bag in order]) for part in parts]
    again = dilated_attention(*moved, plan([lengths[bag] for bag in order]))
    torch.testing.assert_close(again, torch.cat([bags[bag] for bag in order]), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("branches", "matters"), [([(64, 1)], False), ([(64, 2)], True)])
def test_order_of_tiles_matters_if_dilated(branches, matters):
    parts, planned = heads(30), plan([30], branches)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    moved = dilated_attention(*(part[order] for part in parts), planned)
    difference = (moved - dilated_attention(*parts, planned)[order]).abs().max()
    assert difference > 0.1 if matters else difference < 1e-12


def test_one_branch_over_everything_is_plain_attention():
    parts = heads(50)
    plain = torch.nn.functional.scaled_dot_product_attention(*parts.transpose(1, 2))
    found = dilated_attention(*parts, plan([50], [(1000, 1)]))
    torch.testing.assert_close(found, plain.transpose(0, 1), rtol=0, atol=1e-12)


def test_a_token_of_no_branch_is_zero():
    parts, planned = heads(12, 4), plan([12], [(6, 4)], n_heads=4, rule="paper")
    out = dilated_attention(*parts, planned)
    is_covered = torch.zeros(12, 4, dtype=torch.bool)
    for token in range(12):
        is_covered[token, token % 6 % 4] = True
    assert (out[~is_covered] == 0).all()
    assert (out[is_covered] != 0).all()


def test_a_bag_of_many_segments_equals_dense_attention():
    parts, branches = heads(200, 2, 4), [(16, 1), (24, 2), (30, 4), (500, 64)]
    settings = {"branches": branches, "rule": "torchscale", "pad": "zero"}
    found = dilated_attention(*parts, plan([200], branches, 2, pad="zero"))
    torch.testing.assert_close(found, dense_attention(*parts, [200], **settings), rtol=0, atol=1e-9)


@PADS
def test_calls_may_be_small(pad, monkeypatch):
    parts, found = heads(), []
    for most in (2**16, 16):
        monkeypatch.setattr(dilated_plan, "MOST_ROWS", {"cpu": most})
        planned = plan(pad=pad)
        found.append(with_gradients(partial(dilated_attention, plan=planned), parts))
    assert sum(map(len, planned.branches)) > 20
    for few, many in zip(*found, strict=True):
        torch.testing.assert_close(few, many, rtol=0, atol=1e-12)


@PADS
@pytest.mark.parametrize("branches", [GROWING, SPARSE])
def test_a_pass_without_gradient_merges_on_the_way(pad, branches):
    parts, planned = heads(), plan(branches=branches, pad=pad)
    with_gradient, *_ = with_gradients(lambda *own: dilated_attention(*own, planned), parts)
    without = dilated_attention(*parts, planned)
    torch.testing.assert_close(without, with_gradient, rtol=0, atol=1e-12)


def test_gradients_are_the_same_if_run_again():
    parts = heads()
    keep = with_gradients(lambda *own: dilated_attention(*own, plan()), parts)
    again = with_gradients(
        lambda *own: checkpoint(dilated_attention, *own, plan(), use_reentrant=False), parts
    )
    for kept, recomputed in zip(keep, again, strict=True):
        torch.testing.assert_close(kept, recomputed, rtol=0, atol=0)


@PADS
@RULES
@pytest.mark.parametrize("branches", [GROWING, SPARSE])
def test_attention_of_a_token_is_its_row(pad, rule, branches):
    (query, key, value), planned = heads(), plan(branches=branches, rule=rule, pad=pad)
    out = dilated_attention(query, key, value, planned)
    first, bag = 38, slice(38, 102)
    shares, weights = dense_weights(query[bag], key[bag], branches=branches, rule=rule, pad=pad)
    for token in (38, 60, 101):
        share_HT = attention_of_token(query, key, planned, token=token)
        dense_HL = (weights * shares).sum(0)[:, token - first]
        torch.testing.assert_close(share_HT[:, bag], dense_HL, rtol=0, atol=1e-12)
        assert share_HT.sum() == pytest.approx(share_HT[:, bag].sum().item())
        assert (share_HT >= 0).all()
        assert (share_HT.sum(1) <= 1 + 1e-12).all()
        if pad == "masked" and branches is GROWING:
            torch.testing.assert_close(share_HT.sum(1), torch.ones(5, dtype=torch.float64))
        merged = torch.einsum("ht,the->he", share_HT, value)
        torch.testing.assert_close(merged, out[token], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("n_tokens", "n_heads"), [(5, 5), (37, 4)])
def test_a_plan_of_other_bags_is_refused(n_tokens, n_heads):
    with pytest.raises(ValueError, match=f"got {n_tokens} tokens of {n_heads} heads"):
        dilated_attention(*heads(n_tokens, n_heads), plan([37]))
