"""The arithmetic of many few-shot episodes at once: class vectors, and which is nearest."""

# Shape suffixes: N test rows, M train rows, D embedding width, C classes, E episodes,
# S rows of the supports of some episodes, B bags (one a class and episode).

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from anlage.probes.splits.few_shot import Supports

BLOCK_BYTES = {"cpu": 32 * 2**20, "cuda": 256 * 2**20}
TEST_ROWS = 8192
GATHERED_VALUES = 2**18
GATHER_COST = 100  # one value gathered and squared takes as long as this many products of a matmul


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sides:
    """Train and test rows in one frame about zero.

    Attributes:
        train_MD: (M, D) train rows.
        square_M: (M,) their squared lengths.
        test_ND: (N, D) test rows, those of the first class first.
        square_N: (N,) their squared lengths.
        n_test_C: Test rows of each class.
    """

    train_MD: Tensor
    square_M: Tensor
    test_ND: Tensor
    square_N: Tensor
    n_test_C: Sequence[int]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EpisodeVectors:
    """What the supports of a block of episodes come to.

    Attributes:
        mean_ED: (E, D) mean of the support.
        prototype_ECD: (E, C, D) means of centred support rows of length 1.
    """

    mean_ED: Tensor
    prototype_ECD: Tensor


def sides_about_zero(train_MD: Tensor, test_ND: Tensor, *, n_test_C: Sequence[int]) -> Sides:
    """Copies of both sides, over the largest value and less the train mean.

    SimpleShot is the same in every such frame; in this one squares neither cancel nor overflow.

    Args:
        train_MD: (M, D) train rows.
        test_ND: (N, D) test rows, those of the first class first.
        n_test_C: Test rows of each class.
    """
    largest = torch.maximum(_largest(train_MD), _largest(test_ND))
    train_MD, test_ND = train_MD / largest, test_ND / largest
    shift_D = train_MD.mean(dim=0)
    train_MD -= shift_D
    test_ND -= shift_D
    return Sides(
        train_MD=train_MD,
        square_M=torch.linalg.vector_norm(train_MD, dim=1).square(),
        test_ND=test_ND,
        square_N=torch.linalg.vector_norm(test_ND, dim=1).square(),
        n_test_C=n_test_C,
    )


def play(sides: Sides, supports: Supports) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What the episodes of one number of shots get right, a block of them at a time.

    Args:
        sides: Train and test rows.
        supports: Train rows that each episode sees.

    Returns:
        hits_EC: (E, C) int64 test rows of each class that each episode got right.
        hits_N: (N,) int64 episodes that got each test row right, in the order of ``sides``.
    """
    n_episodes, n_classes, _ = supports.unit_ECK.shape
    device = sides.test_ND.device
    hits_EC = torch.zeros(n_episodes, n_classes, dtype=torch.int64, device=device)
    hits_N = torch.zeros(len(sides.test_ND), dtype=torch.int64, device=device)
    n_test, width = min(len(sides.test_ND), TEST_ROWS), sides.test_ND.shape[1]
    n_values = max(n_classes * n_test, n_classes * width, len(sides.train_MD))  # of an episode
    n_block = max(1, BLOCK_BYTES[device.type] // (n_values * sides.test_ND.itemsize))
    for first in range(0, n_episodes, n_block):
        row_S, start_B = supports.rows(first, first + n_block)
        vectors = episode_vectors(
            sides,
            row_S=torch.from_numpy(row_S).to(device),
            start_B=torch.from_numpy(start_B).to(device),
            n_classes=n_classes,
        )
        for start in range(0, len(sides.test_ND), TEST_ROWS):
            score_ECN = _scores(sides, vectors, start=start)
            for place, own in _parts(sides.n_test_C, start, score_ECN.shape[2]):
                is_hit_EN = _is_largest(score_ECN[:, :, own], place)
                hits_EC[first : first + n_block, place] += is_hit_EN.sum(dim=1)
                hits_N[start + own.start : start + own.stop] += is_hit_EN.sum(dim=0)
    return hits_EC.cpu().numpy(), hits_N.cpu().numpy()


def episode_vectors(
    sides: Sides, *, row_S: Tensor, start_B: Tensor, n_classes: int
) -> EpisodeVectors:
    """Means and prototypes of a block of episodes; the support rows are never copied together.

    ``embedding_bag`` gathers and adds: once for the means, and once, weighted by one over each
    row's distance to its episode's mean, for the prototypes.

    Args:
        sides: Train rows are taken from here.
        row_S: (S,) rows of the supports, bag by bag.
        start_B: (B + 1,) where each bag starts.
        n_classes: Bags of an episode.
    """
    n_rows_B = start_B.diff()
    n_rows_E = n_rows_B.view(-1, n_classes).sum(dim=1)
    episode_S = torch.repeat_interleave(n_rows_E)

    def bag_sums(rows: Tensor, row: Tensor, weight_S: Tensor | None = None) -> Tensor:
        return functional.embedding_bag(
            row, rows, start_B[:-1], mode="sum", per_sample_weights=weight_S
        ).view(-1, n_classes, rows.shape[1])

    mean_ED = bag_sums(sides.train_MD, row_S).sum(dim=1).div_(n_rows_E[:, None])
    distance_S = _distances(sides, row_S, mean_ED=mean_ED, episode_S=episode_S)
    weight_S = distance_S.reciprocal().masked_fill_(distance_S == 0, 0)  # no direction: left out
    weight_EC1 = bag_sums(weight_S[:, None], torch.arange(len(row_S), device=row_S.device))
    prototype_ECD = bag_sums(sides.train_MD, row_S, weight_S)
    prototype_ECD.addcmul_(weight_EC1, mean_ED[:, None], value=-1)
    prototype_ECD.div_(n_rows_B.view(-1, n_classes, 1))
    return EpisodeVectors(mean_ED=mean_ED, prototype_ECD=prototype_ECD)


def _distances(sides: Sides, row_S: Tensor, *, mean_ED: Tensor, episode_S: Tensor) -> Tensor:
    """(S,) distance of each support row to the mean of its episode, the cheaper of two ways.

    Few rows are gathered 1 MiB at a time. Where supports hold a good part of the train side, one
    product of all its rows with all means costs less.
    """
    train_MD = sides.train_MD
    if len(row_S) * GATHER_COST < len(train_MD) * len(mean_ED):
        n_block = max(1, GATHERED_VALUES // train_MD.shape[1])
        parts = [
            torch.linalg.vector_norm(train_MD[row] - mean_ED[episode], dim=1)
            for row, episode in zip(
                torch.split(row_S, n_block), torch.split(episode_S, n_block), strict=True
            )
        ]
        return torch.cat(parts)
    dot_EM = mean_ED @ train_MD.T
    square_E = torch.linalg.vecdot(mean_ED, mean_ED)
    dot_S = dot_EM.view(-1)[episode_S * len(train_MD) + row_S]
    square_S = (sides.square_M[row_S] + square_E[episode_S]).sub_(dot_S, alpha=2)
    square_S.clamp_min_(0)
    return torch.sqrt(square_S)


def _scores(sides: Sides, vectors: EpisodeVectors, *, start: int) -> Tensor:
    """(E, C, N) scores of up to 8,192 test rows, the largest where the prototype is nearest.

    With q = (t - m) / |t - m|, |q - p|^2 is least where t.p - m.p - |t - m| |p|^2 / 2 is largest.
    Only differences between classes count, so the first class is taken from the others and its
    place in the product is the mean's: one product of N x E C x D is all there is.
    """
    mean_ED, prototype_ECD = vectors.mean_ED, vectors.prototype_ECD
    test_ND = sides.test_ND[start : start + TEST_ROWS]
    square_N = sides.square_N[start : start + TEST_ROWS]
    factor_ECD = prototype_ECD - prototype_ECD[:, :1]
    half_EC = torch.linalg.vecdot(prototype_ECD, prototype_ECD).div_(2)
    half_EC = half_EC - half_EC[:, :1]
    offset_EC = (factor_ECD @ mean_ED[:, :, None])[:, :, 0]
    factor_ECD[:, 0] = mean_ED
    score_ECN = (factor_ECD.flatten(0, 1) @ test_ND.T).view(*half_EC.shape, -1)
    square_E = torch.linalg.vecdot(mean_ED, mean_ED)
    distance_EN = (square_N + square_E[:, None]).sub_(score_ECN[:, 0], alpha=2)
    distance_EN.clamp_min_(0).sqrt_()
    score_ECN[:, 0] = 0
    score_ECN.addcmul_(half_EC[:, :, None], distance_EN[:, None], value=-1)
    score_ECN -= offset_EC[:, :, None]
    return score_ECN


def _is_largest(score_ECN: Tensor, place: int) -> Tensor:
    """(E, N) whether class ``place`` has the largest score; the first class wins a tie."""
    own_EN = score_ECN[:, place]
    is_largest_EN = torch.ones_like(own_EN, dtype=torch.bool)
    if place:
        is_largest_EN &= own_EN > score_ECN[:, :place].amax(dim=1)
    if place + 1 < score_ECN.shape[1]:
        is_largest_EN &= own_EN >= score_ECN[:, place + 1 :].amax(dim=1)
    return is_largest_EN


def _parts(n_test_C: Sequence[int], start: int, n_rows: int) -> Iterator[tuple[int, slice]]:
    """The classes in a block of sorted test rows, and their rows in it."""
    edges = np.concatenate([[0], np.cumsum(n_test_C)]).clip(start, start + n_rows) - start
    for place, (first, last) in enumerate(pairwise(edges.tolist())):
        if first < last:
            yield place, slice(first, last)


def _largest(rows: Tensor) -> Tensor:
    low, high = rows.aminmax()
    return torch.maximum(-low, high)
