"""Listed tiles are drawn by their weights, as a function of the seed and g alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_catalogue import make_catalogue

from anlage.distributed import Ranks
from anlage.errors import CatalogueError, TrainingError
from anlage.slides.catalogue import Catalogue
from anlage.tiles.listed_sampling import ListedTileSampler, sampler_from_list
from anlage.tiles.stream import TileStream
from anlage.tiles.tile_list import TileList


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    return make_catalogue(tmp_path_factory.mktemp("slides"))  # a, b, c: 256 x 192 px at 1 mpp


def a_list(weights: np.ndarray, *, n_slides: int = 3, tile_px: int = 32) -> TileList:
    n = len(weights)
    return TileList(
        slide_ids=tuple("abc"[:n_slides]),
        slide_N=np.arange(n) % n_slides,
        corner_N2=np.stack([np.arange(n) % 224, np.arange(n) // 224 * 7], axis=1),
        mpp_N=np.ones(n),
        tile_px_N=np.full(n, tile_px),
        weight_N=np.asarray(weights, dtype=np.float64),
        cluster_NT=np.zeros((n, 0), dtype=np.int64),
    )


def a_sampler(slides: Catalogue, tiles: TileList, **settings) -> ListedTileSampler:
    defaults = {"seed": 3, "size_px": 32, "batch_size": 6, "magnifications": {1.0: 1.0}}
    return sampler_from_list(slides, tiles, path="list.parquet", **{**defaults, **settings})


def drawn(sampler: ListedTileSampler, first: int, last: int) -> list[tuple[str, int, int]]:
    return [(t.slide_id, t.x, t.y) for t in map(sampler.draw, range(first, last))]


def test_a_pass_draws_each_tile_once_in_another_order_each_time(slides: Catalogue) -> None:
    tiles = a_list(np.ones(500))
    sampler = a_sampler(slides, tiles)
    listed = sorted(
        (tiles.slide_ids[s], x, y)
        for s, (x, y) in zip(tiles.slide_N, tiles.corner_N2.tolist(), strict=True)
    )
    passes = [drawn(sampler, 500 * i, 500 * (i + 1)) for i in range(3)]
    assert all(sorted(one) == listed for one in passes)
    assert passes[0] != passes[1] != passes[2]
    assert passes[0] != drawn(a_sampler(slides, tiles, seed=4), 0, 500)


def test_weights_are_counts_of_a_pass_to_less_than_one(slides: Catalogue) -> None:
    weights = np.random.default_rng(0).gamma(0.5, size=200)
    weights[::17] = 0
    tiles = a_list(weights)
    sampler = a_sampler(slides, tiles)
    n = sampler.draws_per_pass
    assert n == (weights > 0).sum()
    expected = weights / weights.sum() * n
    row_of = {tuple(corner): row for row, corner in enumerate(tiles.corner_N2.tolist())}
    total = np.zeros(200)
    for number in range(40):
        counts = Counter(row_of[x, y] for _, x, y in drawn(sampler, number * n, (number + 1) * n))
        found = np.array([counts[row] for row in range(200)])
        assert (np.abs(found - expected) < 1).all()
        total += found
    # offsets are uniform: over passes the mean tends to the weight itself
    assert np.abs(total / 40 - expected).max() < 0.35


def test_the_draw_of_g_needs_no_other(slides: Catalogue) -> None:
    tiles = a_list(np.random.default_rng(1).random(150))
    whole = drawn(a_sampler(slides, tiles), 0, 450)
    for g in (449, 0, 151, 300):
        assert drawn(a_sampler(slides, tiles), g, g + 1) == whole[g : g + 1]


def test_ranks_share_the_stream_and_a_resumed_one_goes_on(slides: Catalogue) -> None:
    tiles = a_list(np.ones(40))

    def seen(first: int, last: int, ranks: Ranks | None = None) -> dict[int, tuple[str, int, int]]:
        found = {}
        with TileStream(slides, a_sampler(slides, tiles), threads=2) as stream:
            ranked = {} if ranks is None else {"ranks": ranks}
            for batch in stream.batches(first, last, **ranked):
                for request in batch.requests:
                    found[request.g] = (request.slide_id, request.x, request.y)
        return found

    alone = seen(0, 12)
    assert list(alone) == list(range(72))
    both = seen(0, 12, Ranks(0, 2)) | seen(0, 12, Ranks(1, 2))
    assert both == alone
    assert seen(7, 12) == {g: place for g, place in alone.items() if g >= 42}


def test_resolutions_have_the_shares_of_the_recipe(slides: Catalogue) -> None:
    tiles = a_list(np.ones(120))
    mpp_N = np.where(np.arange(120) < 30, 1.0, 2.0)
    tiles = replace(tiles, mpp_N=mpp_N, corner_N2=tiles.corner_N2 // 2)
    sampler = a_sampler(slides, tiles, magnifications={1.0: 2.0, 2.0: 1.0})
    fine = sum(sampler.draw(g).mpp == 1.0 for g in range(120))
    assert abs(fine - 80) <= 1


def test_another_size_keeps_the_centre_and_stays_on_the_slide(slides: Catalogue) -> None:
    tiles = replace(
        a_list(np.ones(3), n_slides=1), corner_N2=np.array([[100, 80], [0, 0], [224, 160]])
    )
    sampler = a_sampler(slides, tiles, size_px=64)
    assert sorted(drawn(sampler, 0, 3)) == [("a", 0, 0), ("a", 84, 64), ("a", 192, 128)]
    small = a_sampler(slides, tiles, size_px=16)
    assert sorted(drawn(small, 0, 3)) == [("a", 8, 8), ("a", 108, 88), ("a", 232, 168)]


def test_later_attempts_and_quarantine_draw_listed_tiles(slides: Catalogue) -> None:
    tiles = a_list(np.where(np.arange(90) % 3 == 1, 3.0, 1.0))  # slide b weighs three times
    sampler = a_sampler(slides, tiles)
    again = [sampler.draw(g, attempt=1) for g in range(600)]
    assert all((t.g, t.attempt) == (g, 1) for g, t in enumerate(again))
    assert abs(sum(t.slide_id == "b" for t in again) / 600 - 0.6) < 0.07
    before = drawn(sampler, 0, 180)
    sampler.quarantine("b", from_step=11)
    assert drawn(sampler, 0, 66) == before[:66]
    after = drawn(sampler, 66, 180)
    assert not any(slide == "b" for slide, _, _ in after)
    kept = [(new, old) for new, old in zip(after, before[66:], strict=True) if old[0] != "b"]
    assert all(new == old for new, old in kept)
    for name in "ac":
        sampler.quarantine(name, from_step=11)
    with pytest.raises(TrainingError, match="999 tiles drawn after it lie on slides in quarantine"):
        sampler.draw(66)


@pytest.mark.parametrize(
    ("changes", "settings", "says"),
    [
        ({"slide_ids": ("a", "x", "y")}, {}, r"2 slides that are not among the 3 .*\(x, y\)"),
        ({"mpp_N": np.full(9, 0.5)}, {"magnifications": {0.5: 1}}, "at least as fine as its tiles"),
        ({"corner_N2": np.full((9, 2), 200)}, {}, "needs tiles that lie on their slides; got 9"),
        ({}, {"size_px": 200}, "needs slides that hold tiles of 200 px; got 9"),
        ({}, {"magnifications": {2.0: 1.0}}, "lists tiles at 1 mpp; the recipe draws 2"),
        ({}, {"magnifications": {1.0: 1.0, 2.0: 1.0}}, "at 1 mpp; the recipe draws 1, 2"),
    ],
)
def test_lists_that_do_not_fit_are_refused(slides: Catalogue, changes, settings, says) -> None:
    tiles = replace(a_list(np.ones(9)), **changes)
    with pytest.raises(CatalogueError, match=says):
        a_sampler(slides, tiles, **settings)


def test_a_resolution_without_weight_is_refused(slides: Catalogue) -> None:
    tiles = replace(a_list(np.array([1.0] * 8 + [0.0])), mpp_N=np.array([1.0] * 8 + [2.0]))
    with pytest.raises(CatalogueError, match="no weight to any tile at 2 mpp"):
        a_sampler(slides, tiles, magnifications={1.0: 0.5, 2.0: 0.5}, size_px=16)


def test_a_list_of_the_test_split_is_refused_where_training_slides_are_drawn(
    slides: Catalogue,
) -> None:
    with pytest.raises(CatalogueError, match=r"1 slides .* not among the 2 trained on \(c\)"):
        a_sampler(slides.select(split="train"), a_list(np.ones(9)))


def test_damaged_slides_cost_their_tiles(slides: Catalogue, tmp_path: Path) -> None:
    own = make_catalogue(tmp_path)
    tiles = a_list(np.ones(30))
    (tmp_path / "b.tif").unlink()
    with TileStream(own, a_sampler(own, tiles), threads=1) as stream:
        batches = list(stream.batches(0, 5))
    assert stream.read_errors["b"] >= 10
    assert {r.slide_id for batch in batches for r in batch.requests} == {"a", "c"}
