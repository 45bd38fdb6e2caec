"""The decoder of masked slide pretraining: what it may see, and where its tokens stand."""

from __future__ import annotations

import pytest
import torch

from anlage.models.dilated_attention import Branch
from anlage.models.slide_decoder import SlideDecoder
from anlage.models.slide_encoder import SlideStates

WIDTH, OUTPUT = 8, 6
LENGTHS = [5, 9, 2]


def decoder(seed: int = 0) -> SlideDecoder:
    torch.manual_seed(seed)
    return SlideDecoder(
        encoder_width=WIDTH,
        output_width=OUTPUT,
        width=16,
        depth=2,
        n_heads=4,
        segments=(4, 16),
        dilations=(1, 2),
    ).eval()


def bags(seed: int = 1) -> tuple[SlideStates, torch.Tensor, torch.Tensor]:
    """States, cells and visibility of three bags of 5, 9 and 2 tiles, of which 2, 4, 1 are seen."""
    draw = torch.Generator().manual_seed(seed)
    visible = torch.tensor([0, 1, 0, 1, 0, 1, 0, 0, 1, 1, 0, 0, 1, 0, 0, 1]).bool()
    slides, tiles = (torch.randn(n, WIDTH, generator=draw) for n in (3, 7))
    return SlideStates(slides, tiles), torch.randint(0, 30, (16, 2), generator=draw), visible


def test_a_batch_of_bags_equals_its_bags_one_by_one() -> None:
    network, (states, cells, visible) = decoder(), bags()
    together = network(states, cells, visible, LENGTHS)
    assert together.shape == (9, OUTPUT)
    firsts, seen, found = [0, 5, 14], [0, 2, 6, 7], []
    for number, length in enumerate(LENGTHS):
        own = slice(firsts[number], firsts[number] + length)
        of_bag = SlideStates(
            states.slide_BD[number : number + 1], states.tile_TD[seen[number] : seen[number + 1]]
        )
        found.append(network(of_bag, cells[own], visible[own], [length]))
    torch.testing.assert_close(together, torch.cat(found), rtol=1e-5, atol=1e-6)


def test_hidden_tiles_are_told_apart_by_their_place_alone() -> None:
    network, (states, cells, visible) = decoder(), bags()
    cells[2] = cells[0]  # two hidden tiles of one bag in one cell; no head's branch parts them here
    network.branches = (Branch(16, 1),)
    together = network(states, cells, visible, LENGTHS)
    torch.testing.assert_close(together[0], together[1])
    moved = cells.clone()
    moved[2] += 7
    apart = network(states, moved, visible, LENGTHS)
    assert (apart[0] - apart[1]).abs().max() > 1e-3


def test_predictions_depend_on_what_is_seen_of_the_bag_and_of_no_other() -> None:
    network, (states, cells, visible) = decoder(), bags()
    before = network(states, cells, visible, LENGTHS)
    other = SlideStates(states.slide_BD, states.tile_TD.clone())
    other.tile_TD[3] += 1.0  # of the second bag
    after = network(other, cells, visible, LENGTHS)
    torch.testing.assert_close(after[:3], before[:3])
    torch.testing.assert_close(after[8:], before[8:])
    assert ((after[3:8] - before[3:8]).abs().amax(dim=1) > 1e-5).all()


def test_recomputing_changes_no_gradient() -> None:
    states, cells, visible = bags()
    gradients = []
    for recompute in (False, True):
        network = decoder().train()
        out = network(states, cells, visible, LENGTHS, recompute=recompute)
        torch.autograd.backward(out.square().sum())
        gradients.append([p.grad for p in network.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert one is not None
        torch.testing.assert_close(one, other)


def test_what_does_not_fit_is_refused() -> None:
    network, (states, cells, visible) = decoder(), bags()
    with pytest.raises(ValueError, match="got 3 tokens, 16 cells, 7 states"):
        network(states, cells, visible, [5, 9])
    with pytest.raises(ValueError, match="8 of 16 visible"):
        network(states, cells, visible | (torch.arange(16) == 0), LENGTHS)
