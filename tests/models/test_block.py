"""One transformer block: its two branches written out, and what stochastic depth skips."""

import torch

from anlage.models.layers.block import Block
from anlage.models.layers.packing import SequenceShape, unpack
from anlage.models.layers.stochastic_depth import KeptSequences

SHAPES = [SequenceShape(4, 3), SequenceShape(2, 5)]


def draw(**options: object) -> tuple[Block, torch.Tensor]:
    torch.manual_seed(4)
    block = Block(width=12, n_heads=3, layer_scale=0.7, **options)
    return block, torch.randn(22, 12)


def drawn(block: Block) -> tuple[KeptSequences, KeptSequences]:
    kept = block.draw(SHAPES, device=torch.device("cpu"))
    assert kept is not None
    return kept


def test_out_of_training_and_without_a_rate_nothing_is_drawn() -> None:
    before = torch.get_rng_state()
    for block in (draw()[0].train(), draw(stochastic_depth=0.5)[0].eval()):
        torch.set_rng_state(before)
        assert block.draw(SHAPES, device=torch.device("cpu")) is None
        assert torch.equal(torch.get_rng_state(), before)


def test_equals_the_two_branches_written_out() -> None:
    block, tokens = draw()
    middle = tokens + 0.7 * block.attn(block.norm1(tokens), SHAPES)
    wanted = middle + 0.7 * block.mlp(block.norm2(middle))
    torch.testing.assert_close(block(tokens, SHAPES), wanted)


def test_without_layer_scale_the_branches_count_fully() -> None:
    block = Block(width=12, n_heads=3)
    tokens = torch.randn(22, 12)
    middle = tokens + block.attn(block.norm1(tokens), SHAPES)
    torch.testing.assert_close(block(tokens, SHAPES), middle + block.mlp(block.norm2(middle)))


def test_a_kept_image_gets_its_branch_scaled_up_and_a_skipped_one_nothing() -> None:
    block, tokens = draw(stochastic_depth=0.5)
    torch.nn.init.zeros_(block.ls2.gamma)  # leaves the attention branch alone
    full_change = block.eval()(tokens, SHAPES) - tokens
    change = block.train()(tokens, SHAPES, drawn(block)) - tokens
    for full, partial in zip(unpack(full_change, SHAPES), unpack(change, SHAPES), strict=True):
        is_kept = partial.abs().amax(dim=(1, 2)) > 0
        assert is_kept.sum() == len(full) / 2
        torch.testing.assert_close(partial[is_kept], 2 * full[is_kept], atol=1e-5, rtol=1e-5)


def test_a_skipped_image_costs_no_work() -> None:
    block, tokens = draw(stochastic_depth=0.5)
    rows = []
    block.mlp.register_forward_hook(lambda _module, inputs, _output: rows.append(len(inputs[0])))
    block(tokens, SHAPES, drawn(block))
    assert rows == [2 * 3 + 1 * 5]
