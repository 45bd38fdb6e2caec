"""CLAM's branches and its choice of tiles."""

import numpy as np
import pytest
import torch

from anlage.models.bag_pooling.clam import ClamPooling, extreme_tiles
from anlage.objectives.slide_instances import instance_loss
from reference.slow_bag_pooling import slow_attention_pooling


def small(*, multi_branch: bool, n_instances: int = 3) -> ClamPooling:
    torch.manual_seed(2)
    return ClamPooling(
        input_width=6,
        n_classes=3,
        multi_branch=multi_branch,
        width=5,
        hidden=4,
        n_instances=n_instances,
    ).eval()


@pytest.mark.parametrize("multi_branch", [False, True])
def test_equals_loops_over_tiles(*, multi_branch: bool) -> None:
    pooling = small(multi_branch=multi_branch)
    weights = {name: value.double().numpy() for name, value in pooling.state_dict().items()}
    tiles = torch.randn(21, 6)
    found = pooling(tiles, [9, 12])
    for b, bag in enumerate(tiles.split([9, 12])):
        embedding, attention = slow_attention_pooling(bag.double().numpy(), weights, gated=True)
        ours = found.embedding_BW[b].detach().reshape(embedding.shape)
        np.testing.assert_allclose(ours, embedding, atol=1e-6)
        hidden = np.maximum(
            bag.double().numpy() @ weights["embed.0.weight"].T + weights["embed.0.bias"], 0
        )
        for c in range(3):
            order = np.argsort(-attention[:, c if multi_branch else 0])
            rows = slice(2 * c, 2 * c + 2)
            for tiles_at, ours in (
                (order[:3], found.instances.top_BCK2),
                (order[::-1][:3], found.instances.bottom_BCK2),
            ):
                logits = hidden[tiles_at] @ weights["instances.weight"][rows].T
                logits = logits + weights["instances.bias"][rows]
                np.testing.assert_allclose(ours[b, c].detach(), logits, atol=1e-6)


def test_the_most_and_least_attended_tiles() -> None:
    attention = torch.tensor([[0.1], [0.5], [0.05], [0.3], [0.05 - 1e-6]])
    assert extreme_tiles(attention, 2).tolist() == [[[1, 3]], [[4, 2]]]


@pytest.mark.parametrize(("n_tiles", "n_kept"), [(1, 0), (2, 1), (5, 2), (6, 3), (40, 3)])
def test_a_small_bag_gives_half_of_its_tiles_to_each_side(n_tiles: int, n_kept: int) -> None:
    pooled = small(multi_branch=True)(torch.randn(n_tiles, 6), [n_tiles])
    assert pooled.instances.is_tile_BK.sum().item() == n_kept
    loss = instance_loss(
        pooled.instances.top_BCK2,
        pooled.instances.bottom_BCK2,
        torch.tensor([1]),
        is_tile_BK=pooled.instances.is_tile_BK,
    )
    assert torch.isfinite(loss).all()
    assert (loss.item() == 0) == (n_kept == 0)


def test_instances_teach_the_tiles_and_not_the_attention() -> None:
    pooling = small(multi_branch=False)
    instances = pooling(torch.randn(12, 6), [12]).instances
    loss = instance_loss(
        instances.top_BCK2,
        instances.bottom_BCK2,
        torch.tensor([0]),
        is_tile_BK=instances.is_tile_BK,
    )
    loss.sum().backward()
    assert pooling.instances.weight.grad.abs().sum() > 0
    assert pooling.embed[0].weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in pooling.attention.parameters())


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="other_classes=0"):
        ClamPooling(input_width=4, n_classes=1, multi_branch=True)
