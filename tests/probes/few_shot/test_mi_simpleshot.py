"""MI-SimpleShot against sorted distances, tile by tile; bags of every kind; refusals."""

import numpy as np
import pytest
import torch

from anlage.probes.few_shot.mi_simpleshot import mi_simpleshot
from anlage.probes.few_shot.prototypes import prototypes
from reference.slow_simpleshot import slow_bag_distances

RNG = np.random.default_rng(0)
CENTRE = RNG.normal(size=(3, 10))
LABEL = np.repeat(["x", "y", "z"], 20)
TRAIN = 2 + CENTRE[np.repeat([0, 1, 2], 20)] + RNG.normal(size=(60, 10))
SLIDE = np.array([0, 1, 2, 2, 1, 0, 1])
LENGTH = (30, 7, 200, 3, 55, 12, 1)
BAGS = [
    2
    + CENTRE[np.where(RNG.random(n) < 0.4, place, RNG.integers(0, 3, n))]
    + RNG.normal(size=(n, 10))
    for place, n in zip(SLIDE, LENGTH, strict=True)
]
PROTOTYPES = prototypes(TRAIN, LABEL)


@pytest.mark.parametrize(("reading", "power"), [("code", 2), ("paper", 1)])
@pytest.mark.parametrize("top_k", [1, 5, 50])
def test_distances_are_the_slow_ones(reading, power, top_k):
    got = mi_simpleshot(PROTOTYPES, BAGS, top_k=top_k, reading=reading)
    rows_of_class = [np.flatnonzero(name == LABEL) for name in "xyz"]
    for tiles, label, score in zip(BAGS, got.label_N, got.score_NC, strict=True):
        distance = slow_bag_distances(TRAIN, rows_of_class, tiles, top_k, power)
        assert label == "xyz"[distance.argmin()]
        np.testing.assert_allclose(score, np.exp(-distance) / np.exp(-distance).sum(), atol=1e-5)


def test_the_readings_are_not_the_same():
    """Squaring counts a far tile for more."""
    code, paper = (mi_simpleshot(PROTOTYPES, BAGS, reading=r).score_NC for r in ("code", "paper"))
    assert not np.allclose(code, paper, atol=1e-3)


def test_blocks_of_tiles_and_kinds_of_bags_change_nothing(monkeypatch):
    expected = mi_simpleshot(PROTOTYPES, BAGS, top_k=5)
    monkeypatch.setattr("anlage.probes.few_shot.tile_bags.BLOCK_TILES", 4)
    for bags in (
        BAGS,
        (torch.from_numpy(tiles) for tiles in BAGS),
        [tiles.astype(np.float16) for tiles in BAGS],
        [tiles.tolist() for tiles in BAGS],
    ):
        got = mi_simpleshot(PROTOTYPES, bags, top_k=5)
        np.testing.assert_allclose(got.score_NC, expected.score_NC, atol=2e-3)
        assert (got.class_C == ["x", "y", "z"]).all()


def test_a_short_bag_is_averaged_over_all_its_tiles():
    whole = mi_simpleshot(PROTOTYPES, [BAGS[3]], top_k=3).score_NC
    np.testing.assert_allclose(mi_simpleshot(PROTOTYPES, [BAGS[3]], top_k=50).score_NC, whole)


@pytest.mark.parametrize(
    ("bags", "change", "message"),
    [
        ([], {}, "bags needs one bag or more; got none"),
        ([BAGS[0], BAGS[0][:0]], {}, r"bag 1 from tile 0 needs a non-empty .* got shape \(0, 10\)"),
        ([BAGS[0][:, :4]], {}, "bag 0 from tile 0 needs embeddings of width 10.*got 4"),
        ([np.full((3, 10), np.nan)], {}, "bag 0 from tile 0 needs finite numbers"),
        ([BAGS[0][0]], {}, "needs a non-empty"),
        (BAGS, {"top_k": 0}, "needs top_k of 1 or more.*got top_k=0"),
        (BAGS, {"reading": "readme"}, "got top_k=5, reading='readme'"),
    ],
)
def test_refusals(bags, change, message):
    with pytest.raises(ValueError, match=message):
        mi_simpleshot(PROTOTYPES, bags, **change)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees():
    cpu = mi_simpleshot(PROTOTYPES, BAGS)
    cuda = mi_simpleshot(prototypes(TRAIN, LABEL, device="cuda"), BAGS)
    np.testing.assert_allclose(cpu.score_NC, cuda.score_NC, atol=1e-5)
