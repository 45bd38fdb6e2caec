"""The slide encoder: what it gives, on what that depends, and what it refuses."""

import pytest
import torch
from torch import nn

from anlage.models.slide_encoder import SlideEncoder
from anlage.models.slide_sizes import SIZES
from anlage.models.without_weights import without_weights

SMALL = {
    "input_width": 12, "width": 32, "depth": 3, "n_heads": 4,
    "segments": [8, 16, 32], "dilations": [1, 2, 4],
}  # fmt: skip
LENGTHS = [30, 1, 41]


def encoder(**changes) -> SlideEncoder:
    torch.manual_seed(0)
    network = SlideEncoder(**{**SMALL, **changes}).eval()
    with torch.no_grad():
        for parameter in network.parameters():  # biases and gains that count
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def bags(lengths=LENGTHS, width: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    n_tiles = sum(lengths)
    cells = torch.randint(0, 40, (n_tiles, 2), generator=generator)
    return torch.randn(n_tiles, width, generator=generator), cells


@torch.no_grad()
def test_states_and_output_are_told_apart():
    network, (features, cells) = encoder(), bags()
    slide_BD, tile_TD = network(features, cells, LENGTHS)
    assert (slide_BD.shape, tile_TD.shape) == ((3, 32), (72, 32))
    torch.testing.assert_close(network.pooled(features, cells, LENGTHS), slide_BD)
    states = list(network.states(features, cells, LENGTHS))
    assert len(states) == network.depth + 1
    first, last = states[0], states[-1]
    torch.testing.assert_close(first[0], network.slide_token[0])  # its position is zero
    torch.testing.assert_close(network.norm(network.encoder_norm(last))[[0, 31, 33]], slide_BD)
    pooled = network.pooled(features, cells, LENGTHS, layers=[3, 0]).view(3, 2, 32)
    torch.testing.assert_close(pooled[:, 0], network.norm(last)[[0, 31, 33]])
    torch.testing.assert_close(pooled[:, 1], network.norm(first)[[0, 31, 33]])
    assert (pooled[:, 0] - slide_BD).abs().max() > 0.01  # encoder_norm is not in a state


@torch.no_grad()
def test_mean_pooling_leaves_the_slide_token_out():
    network, (features, cells) = encoder(), bags()
    *_, last = network.states(features, cells, LENGTHS)
    wanted = network.norm(network.encoder_norm(last)[34:].mean(dim=0))
    pooled = network.pooled(features, cells, LENGTHS, pooling="mean")
    torch.testing.assert_close(pooled[2], wanted)


@pytest.mark.parametrize("pad", ["zero", "masked"])
@torch.no_grad()
def test_a_slide_does_not_depend_on_what_it_is_batched_with(pad):
    network, (features, cells) = encoder(pad=pad), bags()
    together = network(features, cells, LENGTHS)
    start = 0
    for index, length in enumerate(LENGTHS):
        own = slice(start, start + length)
        alone = network(features[own], cells[own], [length])
        torch.testing.assert_close(together.slide_BD[index], alone.slide_BD[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(together.tile_TD[own], alone.tile_TD, atol=3e-6, rtol=0)
        start += length


def test_the_place_of_a_tile_matters_and_a_gradient_reaches_every_weight():
    network, (features, cells) = encoder().train(), bags()
    moved = network.pooled(features, cells + torch.tensor([3, 0]), LENGTHS)
    output = network(features, cells, LENGTHS)
    assert (moved - output.slide_BD).abs().max() > 1e-3
    (output.slide_BD.square().sum() + output.tile_TD.square().sum()).backward()
    without = [name for name, weight in network.named_parameters() if not weight.grad.any()]
    assert without == []


def test_recomputing_gives_the_same_gradients_under_dropout():
    features, cells = bags()
    found = []
    for recompute in (False, True):
        network = encoder(dropout=0.2, stochastic_depth=0.5).train()
        torch.manual_seed(5)
        output = network(features, cells, LENGTHS, recompute=recompute)
        output.tile_TD.square().sum().backward()
        found.append([weight.grad for weight in network.parameters() if weight.grad is not None])
    for left, right in zip(*found, strict=True):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-4)


def test_stochastic_depth_grows_from_nothing_to_the_last_block():
    rates = [block.stochastic_depth for block in encoder(stochastic_depth=0.2).blocks]
    assert rates == pytest.approx([0, 0.1, 0.2])


def test_first_weights_are_gigapaths():
    network = SlideEncoder(**SMALL, dropout=0.25)
    network.initialise(torch.Generator().manual_seed(3))
    again = SlideEncoder(**SMALL)
    again.initialise(torch.Generator().manual_seed(3))
    bound = (6 / 64) ** 0.5  # Xavier's of 32 to 32: queries, keys and values by themselves
    for part in network.blocks[0].attn.qkv.weight.chunk(3):
        assert 0.9 * bound < part.abs().max() <= bound
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            assert not module.bias.any(), name
    assert 0.005 < network.slide_token.std() < 0.05
    for left, right in zip(network.parameters(), again.parameters(), strict=True):
        assert torch.equal(left, right)


def test_gigapath_has_86_million_parameters():
    with without_weights():
        network = SlideEncoder(input_width=1536, **SIZES["gigapath"])
        assert sum(weight.numel() for weight in network.parameters()) == 86_330_880
        for size in SIZES.values():
            SlideEncoder(input_width=192, **size)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"input_width": 0}, "input_width and depth of at least 1; got 0 and 3"),
        ({"depth": 0}, "got 12 and 0"),
        ({"width": 30}, "multiple of 4 and of n_heads; got width 30"),
        ({"n_heads": 5}, "got width 32 and 5 heads"),
        ({"dilations": [1]}, "as many dilations as segments"),
        ({"segments": [], "dilations": []}, r"got segments \[\]"),
        ({"segments": [8, 16, 0]}, r"got segments \[8, 16, 0\]"),
        ({"stochastic_depth": 1.0}, "stochastic_depth in .*got 1.0"),
        ({"dropout": -0.1}, "dropout .*got -0.1"),
    ],
)
def test_sizes_that_do_not_fit(changes, told):
    with pytest.raises(ValueError, match=told):
        SlideEncoder(**{**SMALL, **changes})


@pytest.mark.parametrize(
    ("lengths", "width", "told"),
    [
        ([72], 11, r"needs \(T, 12\) tile embeddings; got \(72, 11\)"),
        ([70], 12, r"72 tiles, .*lengths \[70\]"),
        ([72, 0], 12, r"lengths \[72, 0\]"),
        ([], 12, r"lengths \[\]"),
    ],
)
def test_bags_that_do_not_fit(lengths, width, told):
    features, cells = bags(width=width)
    with pytest.raises(ValueError, match=told):
        encoder()(features, cells, lengths)


@pytest.mark.parametrize("layers", [[], [4], [-1, 2]])
def test_states_that_are_not_there(layers):
    features, cells = bags()
    with pytest.raises(ValueError, match=r"layers from 0 \(the embedded input\) to 3"):
        encoder().pooled(features, cells, LENGTHS, layers=layers)


def test_a_pooling_that_is_not_there():
    features, cells = bags()
    with pytest.raises(ValueError, match="'cls' or 'mean'; got 'max'"):
        encoder().pooled(features, cells, LENGTHS, pooling="max")
