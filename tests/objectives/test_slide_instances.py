"""CLAM's instance loss against one tile at a time, known values, direction, refusals."""

import math

import pytest
import torch
from objectives.slide_loss_checks import descended, follows_its_gradient

from anlage.objectives.slide_instances import instance_loss
from reference.slow_bag_pooling import slow_instance_loss

GENERATOR = torch.Generator().manual_seed(0)
TOP, BOTTOM = (torch.randn(3, 4, 5, 2, generator=GENERATOR) for _ in range(2))
TARGET = torch.tensor([2, 0, 3])
N_TILES = [5, 2, 0]
IS_TILE = torch.arange(5) < torch.tensor(N_TILES)[:, None]


@pytest.mark.parametrize("kind", ["svm", "cross_entropy"])
@pytest.mark.parametrize("out_of_class", [False, True])
def test_equals_one_tile_at_a_time(*, kind: str, out_of_class: bool) -> None:
    found = instance_loss(
        TOP, BOTTOM, TARGET, is_tile_BK=IS_TILE, kind=kind, out_of_class=out_of_class
    )
    expected = [
        slow_instance_loss(
            TOP[b].double().numpy(),
            BOTTOM[b].double().numpy(),
            int(TARGET[b]),
            N_TILES[b],
            kind=kind,
            out_of_class=out_of_class,
        )
        for b in range(3)
    ]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32))


def test_known_values() -> None:
    zero, target = torch.zeros(1, 2, 3, 2), torch.tensor([1])
    mask = torch.ones(1, 3, dtype=torch.bool)
    plain = instance_loss(zero, zero, target, is_tile_BK=mask, kind="cross_entropy")
    assert plain.item() == pytest.approx(math.log(2))
    margin = instance_loss(zero, zero, target, is_tile_BK=mask)
    assert margin.item() == pytest.approx(math.log(1 + math.e))


@pytest.mark.parametrize("kind", ["svm", "cross_entropy"])
def test_gradient_and_direction(kind: str) -> None:
    def loss(both: torch.Tensor) -> torch.Tensor:
        return instance_loss(both[0], both[1], TARGET, is_tile_BK=IS_TILE, kind=kind)

    both = torch.stack([TOP, BOTTOM])
    follows_its_gradient(loss, both)
    margin = descended(loss, both, rate=20.0).diff(dim=-1)[..., 0]
    assert (margin[0, 0, 2] > 0).all(), "the most attended are of the bag's class"
    assert (margin[1, 0, 2] < 0).all(), "the least attended are not"
    assert (margin[0, 0, [0, 1, 3]] < 0).all(), "nor are the most attended of other branches"
    assert torch.equal(margin[:, 2], both.diff(dim=-1)[:, 2, ..., 0]), "no tile, no change"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: instance_loss(TOP, BOTTOM[:2], TARGET, is_tile_BK=IS_TILE), "got shapes (3, 4, 5"),
        (lambda: instance_loss(TOP, BOTTOM, TARGET[:2], is_tile_BK=IS_TILE), "((3, 4, 5, 2), (2,)"),
        (lambda: instance_loss(TOP, BOTTOM, TARGET + 1, is_tile_BK=IS_TILE), "0 to 3; got [4.0]"),
        (lambda: instance_loss(TOP / 0, BOTTOM, TARGET, is_tile_BK=IS_TILE), "finite logits"),
        (
            lambda: instance_loss(TOP, BOTTOM, TARGET, is_tile_BK=IS_TILE, kind="hinge"),
            "'svm' or 'cross_entropy'; got 'hinge'",
        ),
    ],
)
def test_refusals(call, says: str) -> None:
    with pytest.raises(ValueError, match="instance_loss: needs") as refusal:
        call()
    assert says in str(refusal.value)
