"""Attention MIL against loops over tiles, with UNI's sizes, and finding a key tile."""

import numpy as np
import pytest
import torch

from anlage.models.bag_pooling.attention import AttentionPooling
from anlage.models.slide_model import SlideModel
from anlage.objectives.slide_classification import binary_loss, binary_probability
from reference.slow_bag_pooling import slow_attention_pooling


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("width", "activation"), [(7, True), (7, False), (None, True)])
def test_equals_loops_over_tiles(*, gated: bool, width: int | None, activation: bool) -> None:
    torch.manual_seed(1)
    pooling = AttentionPooling(
        input_width=6, width=width, hidden=4, gated=gated, activation=activation
    ).eval()
    weights = {name: value.double().numpy() for name, value in pooling.state_dict().items()}
    tiles = torch.randn(13, 6)
    found = pooling(tiles, [4, 9])
    for b, bag in enumerate(tiles.double().split([4, 9])):
        embedding, attention = slow_attention_pooling(
            bag.numpy(), weights, gated=gated, activation=activation
        )
        np.testing.assert_allclose(found.embedding_BW[b].detach(), embedding[0], atol=1e-6)
        rows = found.attention_TA.detach()[4 * b : 4 * b + len(bag)]
        np.testing.assert_allclose(rows, attention, atol=1e-6)


def test_the_defaults_are_those_of_uni() -> None:
    pooling = AttentionPooling(input_width=1024, gated=True)
    layer, attention, score = 1024 * 512 + 512, 512 * 384 + 384, 384 + 1
    assert sum(p.numel() for p in pooling.parameters()) == layer + 2 * attention + score
    dropouts = [m.p for m in pooling.modules() if isinstance(m, torch.nn.Dropout)]
    assert dropouts == [0.10, 0.25, 0.25]


def key_bags(n_bags: int, *, seed: int) -> tuple[torch.Tensor, list[int], torch.Tensor]:
    """Bags of noise; the second tile of every other bag is the key that makes it positive."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [20 + b % 7 for b in range(n_bags)]
    tiles = torch.randn(sum(lengths), 8, generator=generator)
    target = torch.arange(n_bags) % 2
    for b, bag in enumerate(tiles.split(lengths)):
        if target[b]:
            bag[1] = torch.tensor([4.0, -4, 4, 0, 0, 0, 0, 0])
    return tiles, lengths, target


@pytest.mark.parametrize("gated", [False, True])
def test_it_finds_the_one_tile_that_matters(*, gated: bool) -> None:
    torch.manual_seed(0)
    kind = "gated_abmil" if gated else "abmil"
    model = SlideModel(input_width=8, n_outputs=1, pooling={"kind": kind, "width": 16, "hidden": 8})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    tiles, lengths, target = key_bags(80, seed=1)
    for _ in range(80):
        loss = binary_loss(model(tiles, None, lengths).logits_BC, target).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tiles, lengths, target = key_bags(24, seed=2)
    output = model.eval()(tiles, None, lengths)
    assert ((binary_probability(output.logits_BC) > 0.5) == target.bool()).all()
    most = [int(bag[:, 0].argmax()) for bag in output.attention_TA.split(lengths)]
    assert all(most[b] == 1 for b in range(24) if target[b])
