"""Softmax and sums over packed bags: each bag by itself, at any size of scores."""

import numpy as np
import pytest
import torch

from anlage.models.bag_pooling.segments import bag_means, bag_softmax, bag_sums, refuse_bags
from reference.slow_bag_pooling import softmax

LENGTHS = [3, 1, 7]


@pytest.mark.parametrize("size", [1.0, 1e4, -1e4])
def test_softmax_is_that_of_each_bag(size: float) -> None:
    score = torch.randn(11, 2, generator=torch.Generator().manual_seed(0)) + size
    found = bag_softmax(score, LENGTHS).numpy()
    for rows in np.split(np.arange(11), np.cumsum(LENGTHS)[:-1]):
        for branch in range(2):
            expected = softmax(score[rows, branch].double().numpy())
            np.testing.assert_allclose(found[rows, branch], expected, atol=1e-6)


def test_low_precision_is_widened_before_the_softmax() -> None:
    score = torch.linspace(-8, 8, 4000).to(torch.bfloat16)[:, None]
    attention = bag_softmax(score, [4000])
    assert attention.dtype == torch.float32
    assert attention.sum().item() == pytest.approx(1, abs=1e-5)


def test_sums_and_means_stay_in_float32_under_autocast() -> None:
    features, weight = torch.randn(11, 5), torch.rand(11, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sums, means = bag_sums(weight, features, LENGTHS), bag_means(features, LENGTHS)
    for b, rows in enumerate(np.split(np.arange(11), np.cumsum(LENGTHS)[:-1])):
        for branch in range(2):
            expected = sum(weight[i, branch] * features[i] for i in rows)
            torch.testing.assert_close(sums[b, branch], expected)
        torch.testing.assert_close(means[b], sum(features[i] for i in rows) / len(rows))


@pytest.mark.parametrize(
    ("shape", "lengths", "says"),
    [
        ((4, 3), [2, 2], "shape (tiles, 5); got (4, 3)"),
        ((4,), [4], "shape (tiles, 5); got (4,)"),
        ((4, 5), [], "one bag or more"),
        ((4, 5), [4, 0], "one tile or more each; got lengths [4, 0]"),
        ((4, 5), [2, 1], "sum to the 4 tiles; got a sum of 3"),
    ],
)
def test_bags_that_do_not_fit_are_refused(shape: tuple, lengths: list[int], says: str) -> None:
    with pytest.raises(ValueError, match="pool: needs") as refusal:
        refuse_bags("pool", torch.zeros(shape), lengths, width=5)
    assert says in str(refusal.value)
