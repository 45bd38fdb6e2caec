"""What every pooling promises: bags by themselves, float32, gradients, refusals."""

import pytest
import torch

from anlage.models.bag_pooling.kinds import POOLINGS, build_pooling
from anlage.models.bag_pooling.segments import BagPooling

LENGTHS = (9, 1, 30, 2)
SMALL = {
    "mean": {},
    "abmil": {"width": 8, "hidden": 6},
    "gated_abmil": {"width": 8, "hidden": 6},
    "clam_sb": {"width": 8, "hidden": 6, "n_instances": 4},
    "clam_mb": {"width": 8, "hidden": 6, "n_instances": 4},
    "transmil": {"width": 8, "n_heads": 2, "n_landmarks": 4},
}


@pytest.fixture(params=sorted(POOLINGS))
def pooling(request: pytest.FixtureRequest) -> BagPooling:
    torch.manual_seed(3)
    return build_pooling(request.param, input_width=5, n_classes=3, **SMALL[request.param]).eval()


def features(seed: int = 0) -> torch.Tensor:
    return torch.randn(sum(LENGTHS), 5, generator=torch.Generator().manual_seed(seed))


def test_every_kind_is_tried() -> None:
    assert set(SMALL) == set(POOLINGS)


def test_shapes_and_attention(pooling: BagPooling) -> None:
    pooled = pooling(features(), LENGTHS)
    branches = (3,) if pooling.is_branched else ()
    assert pooled.embedding_BW.shape == (len(LENGTHS), *branches, pooling.out_width)
    assert pooled.embedding_BW.dtype == torch.float32
    if pooled.attention_TA is not None:
        assert (pooled.attention_TA >= 0).all()
        for bag in pooled.attention_TA.split(LENGTHS):
            torch.testing.assert_close(bag.sum(dim=0), torch.ones(bag.shape[1]))


def test_a_batch_equals_one_bag_at_a_time(pooling: BagPooling) -> None:
    together = pooling(features(), LENGTHS)
    alone = [pooling(bag, [len(bag)]) for bag in features().split(LENGTHS)]
    embedding = torch.cat([one.embedding_BW for one in alone])
    torch.testing.assert_close(together.embedding_BW, embedding, atol=1e-6, rtol=1e-6)
    if together.attention_TA is not None:
        attention = torch.cat([one.attention_TA for one in alone])
        torch.testing.assert_close(together.attention_TA, attention, atol=1e-6, rtol=1e-6)
    if together.instances is not None:
        for place, found in enumerate(together.instances):
            expected = torch.cat([one.instances[place] for one in alone])
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_a_bag_does_not_see_its_neighbours(pooling: BagPooling) -> None:
    other = features()
    other[:9], other[10:] = 1e3, -1e3
    bag = pooling(features(), LENGTHS).embedding_BW[1]
    torch.testing.assert_close(pooling(other, LENGTHS).embedding_BW[1], bag, atol=1e-6, rtol=0)


def test_the_order_of_tiles_counts_for_transmil_alone(pooling: BagPooling) -> None:
    bag = features()[10:40]
    shuffled = bag[torch.randperm(30, generator=torch.Generator().manual_seed(1))]
    change = pooling(bag, [30]).embedding_BW - pooling(shuffled, [30]).embedding_BW
    counts = type(pooling).__name__ == "TransMilPooling"
    assert (change.abs().max() > 1e-3) if counts else (change.abs().max() < 1e-6)


def test_gradients_are_those_of_finite_differences(pooling: BagPooling) -> None:
    pooling.double()
    bags = features()[:8].double().requires_grad_()

    def outputs(tiles: torch.Tensor) -> tuple[torch.Tensor, ...]:
        pooled = pooling(tiles, (5, 1, 2))
        more = pooled.instances[:2] if pooled.instances is not None else ()
        return pooled.embedding_BW, *more

    assert torch.autograd.gradcheck(outputs, bags)


def test_bf16_autocast_is_near_float32(pooling: BagPooling) -> None:
    exact = pooling(features(), LENGTHS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = pooling(features(), LENGTHS)
    assert rough.embedding_BW.dtype == torch.float32
    difference = rough.embedding_BW - exact.embedding_BW
    assert difference.abs().max() < 0.03 * exact.embedding_BW.abs().max()
    if rough.attention_TA is not None:
        first = rough.attention_TA[:9].sum(dim=0)
        torch.testing.assert_close(first, torch.ones_like(first))


def test_dropout_acts_in_training_only(pooling: BagPooling) -> None:
    pooling.train()
    first, second = (pooling(features(), LENGTHS).embedding_BW for _ in range(2))
    assert torch.equal(first, second) == (type(pooling).__name__ == "MeanPooling")


@pytest.mark.parametrize(("shape", "lengths"), [((4, 5), (4, 0)), ((0, 5), ()), ((4, 6), (4,))])
def test_bags_that_do_not_fit_are_refused(
    pooling: BagPooling, shape: tuple[int, int], lengths: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=f"{type(pooling).__name__}: needs"):
        pooling(torch.zeros(shape), lengths)


def test_an_unknown_kind_or_setting_is_refused() -> None:
    with pytest.raises(ValueError, match=r"kinds mean, abmil, .*; got 'max'"):
        build_pooling("max", input_width=4)
    with pytest.raises(ValueError, match="mean does not take these settings: .*hidden"):
        build_pooling("mean", input_width=4, hidden=3)
    with pytest.raises(ValueError, match=r"dropouts in \[0, 1\); got"):
        build_pooling("abmil", input_width=4, dropout=1.0)
    with pytest.raises(ValueError, match="sizes of 1 or more; got .*hidden=0"):
        build_pooling("gated_abmil", input_width=4, hidden=0)
