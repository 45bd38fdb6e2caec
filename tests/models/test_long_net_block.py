"""The LongNet block against its formula, its randomness, and what it refuses."""

import pytest
import torch
from torch.nn import functional

from anlage.models.dilated_attention import Branch, plan_dilated
from anlage.models.layers import long_net_block
from anlage.models.layers.long_net_block import DilatedSelfAttention, LongNetBlock
from reference.dilated import dense_attention

BRANCHES = [(8, 1), (12, 2), (64, 4)]
LENGTHS = [21, 1, 30]


def block(**changes) -> LongNetBlock:
    torch.manual_seed(0)
    network = LongNetBlock(**({"width": 12, "n_heads": 3} | changes)).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network


def plan(lengths):
    return plan_dilated(
        lengths,
        branches=[Branch(*branch) for branch in BRANCHES],
        n_heads=3,
        head_phase="torchscale",
        pad="masked",
        device="cpu",
    )


def tokens_of(lengths):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(sum(lengths), 12, generator=generator, dtype=torch.float64)


def run(network, tokens, lengths, *, recompute=False):
    return network(tokens, plan(lengths), lengths=lengths, recompute=recompute)


def test_a_block_equals_its_formula():
    network, tokens = block().eval(), tokens_of(LENGTHS)
    attn, mlp = network.attn, network.mlp
    query, key, value = attn.qkv(network.norm1(tokens)).view(-1, 3, 3, 4).unbind(1)
    mixed = dense_attention(
        query, key, value, LENGTHS, branches=BRANCHES, rule="torchscale", pad="masked"
    ).flatten(1)
    between = tokens + attn.proj(attn.inner_norm(mixed))
    hidden = functional.gelu(mlp.fc1(network.norm2(between)))
    expected = between + mlp.fc2(mlp.inner_norm(hidden))
    torch.testing.assert_close(run(network, tokens, LENGTHS), expected, rtol=0, atol=1e-9)


def test_names_and_epsilons_of_the_norms():
    network = LongNetBlock(width=12, n_heads=3, norm_eps=1e-3)
    norms = {name: m for name, m in network.named_modules() if isinstance(m, torch.nn.LayerNorm)}
    assert set(norms) == {"norm1", "attn.inner_norm", "norm2", "mlp.inner_norm"}
    assert {norm.eps for norm in norms.values()} == {1e-3}
    assert norms["mlp.inner_norm"].normalized_shape == (48,)


def test_a_pass_without_gradient_goes_by_chunks(monkeypatch):
    network, tokens = block().eval(), tokens_of(LENGTHS)
    before, whole = tokens.clone(), run(network, tokens, LENGTHS)
    monkeypatch.setattr(long_net_block, "CHUNK_TOKENS", 7)
    seen = []
    network.mlp.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    with torch.no_grad():
        chunked = run(network, tokens, LENGTHS)
    assert seen == [7] * 7 + [3]
    torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(tokens, before, rtol=0, atol=0)


def test_stochastic_depth_leaves_out_whole_bags():
    lengths = [5] * 200
    network, tokens = block(stochastic_depth=0.25).train(), tokens_of(lengths)
    network.mlp.fc2.weight.data.zero_()
    network.mlp.fc2.bias.data.zero_()
    with torch.no_grad():
        full = run(network.eval(), tokens, lengths) - tokens
        thinned = run(network.train(), tokens, lengths) - tokens
    ratio_BD = (thinned / full).view(200, -1)
    kept_B = ratio_BD[:, 0] > 0.5
    torch.testing.assert_close(ratio_BD, ratio_BD[:, :1].expand_as(ratio_BD))
    torch.testing.assert_close(ratio_BD[kept_B], torch.full_like(ratio_BD[kept_B], 4 / 3))
    assert (ratio_BD[~kept_B] == 0).all()
    assert kept_B.double().mean() == pytest.approx(0.75, abs=0.1)


def test_dropout_follows_both_branches():
    network, tokens = block(dropout=0.4).train(), tokens_of([40])
    with torch.no_grad():
        thinned = run(network, tokens, [40]) - tokens
    assert (thinned == 0).double().mean() == pytest.approx(0.16, abs=0.06)


@pytest.mark.parametrize("changes", [{}, {"dropout": 0.3, "stochastic_depth": 0.5}])
def test_gradients_are_the_same_if_run_again(changes):
    found = []
    for recompute in (False, True):
        network, tokens = block(**changes).train(), tokens_of(LENGTHS).requires_grad_()
        torch.manual_seed(5)
        out = run(network, tokens, LENGTHS, recompute=recompute)
        out.square().sum().backward()
        found.append([out.detach(), tokens.grad, *(p.grad for p in network.parameters())])
    for kept, again in zip(*found, strict=True):
        torch.testing.assert_close(kept, again, rtol=0, atol=0)


def test_recomputing_keeps_the_input_alone():
    kept = []
    for recompute in (False, True):
        network, tokens = block(), tokens_of(LENGTHS).requires_grad_()
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda part, sizes=sizes: sizes.append(part.numel()) or part, lambda part: part
        ):
            run(network, tokens, LENGTHS, recompute=recompute)
        kept.append(sum(sizes))
    assert kept[1] <= tokens.numel() < 0.1 * kept[0]


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="width=12, n_heads=5"):
        DilatedSelfAttention(width=12, n_heads=5)
