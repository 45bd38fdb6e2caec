"""From bags to a list: each step against what is known of the tiles, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from curated_bags import Bags, corners_of, features_of, kind_of
from small_catalogue import make_catalogue

from anlage.curation.curate import CurateSettings, Curation, curate, fitting_levels
from anlage.errors import BagError, CatalogueError
from anlage.slides.catalogue import Catalogue
from anlage.slides.levels import read_tile
from anlage.tiles.filters import BlurFilter, HsvTissueFilter, PenFilter, TileFilters
from anlage.tiles.tile_list import TileList, read_tile_list

PLAIN = {"levels": (4,), "n_resamplings": 2}


def kinds(made: Curation, rows: np.ndarray) -> list[int]:
    """The kind of each tile, by its place."""
    kind = {tuple(corner): k for corner, k in zip(corners_of().tolist(), kind_of(), strict=True)}
    return [int(kind[tuple(corner)]) for corner in made.pool.corner_N2[rows].tolist()]


def places(tiles: TileList) -> set[tuple[str, int, int]]:
    names = [tiles.slide_ids[slide] for slide in tiles.slide_N]
    return {(name, x, y) for name, (x, y) in zip(names, tiles.corner_N2.tolist(), strict=True)}


def run(folder: str, catalogue: Catalogue, output: Path, **options) -> Curation:
    inputs = {name: options.pop(name) for name in ("query", "held_out", "split") if name in options}
    settings = CurateSettings(**{**PLAIN, **options})
    return curate(folder, catalogue, output, settings=settings, **inputs)


def test_all_tiles_are_listed_with_weights_of_equal_clusters(pool_folder, small, tmp_path) -> None:
    made = run(pool_folder, small, tmp_path / "out")
    assert made.counts == {"in the pool": 144, "listed": 144}
    kind = np.array(kinds(made, made.chosen_M))
    np.testing.assert_allclose(np.bincount(kind, made.weight_M), 144 / 4)
    tiles = read_tile_list(made.output)
    assert places(tiles) == {(n, x, y) for n in "abc" for x, y in corners_of().tolist()}
    assert (set(tiles.mpp_N), set(tiles.tile_px_N)) == ({1.0}, {32})
    np.testing.assert_array_equal(tiles.weight_N, made.weight_M)
    np.testing.assert_array_equal(tiles.cluster_NT, made.path_NT)


def test_a_sample_is_in_equal_shares_and_the_same_again(pool_folder, small, tmp_path) -> None:
    made = run(pool_folder, small, tmp_path / "out", n_sample=60)
    # of 90, 36, 12 and 6 tiles: all of the small ones, and what is left in halves
    assert Counter(kinds(made, made.chosen_M)) == {0: 21, 1: 21, 2: 12, 3: 6}
    tiles = read_tile_list(made.output)
    assert (len(tiles), set(tiles.weight_N)) == (60, {1.0})
    again = run(pool_folder, small, tmp_path / "again", n_sample=60)
    assert read_tile_list(again.output).fingerprint == tiles.fingerprint
    other = run(pool_folder, small, tmp_path / "other", n_sample=60, seed=1)
    assert read_tile_list(other.output).fingerprint != tiles.fingerprint


def test_copies_are_dropped(bags: Bags, small, tmp_path) -> None:
    bags.write("a", features_of(0))
    folder = bags.write("b", np.concatenate([features_of(0)[:40], features_of(1)[40:]]))
    made = run(folder, small, tmp_path / "out", dedup=0.9999)
    assert made.counts == {"in the pool": 96, "after dedup": 56, "listed": 56}
    assert Counter(made.pool.slide_N.tolist()) == {0: 48, 1: 8}


def test_copies_within_parts_are_dropped(bags: Bags, small, tmp_path) -> None:
    bags.write("a", features_of(0))
    folder = bags.write("b", np.concatenate([features_of(0)[:40], features_of(1)[40:]]))
    made = run(folder, small, tmp_path / "out", dedup=0.9999, dedup_parts=4)
    assert made.counts["after dedup"] == 56  # copies are the same, so in the same part


def test_test_patients_and_what_is_like_their_tiles_are_left_out(
    pool_folder, small, tmp_path
) -> None:
    tests = Bags(small, tmp_path / "tests")
    held_out = tests.write("c", np.concatenate([features_of(2)[:42], features_of(0)[:6]]))
    made = run(pool_folder, small, tmp_path / "out", held_out=held_out, held_out_cosine=0.9999)
    assert list(made.counts.values()) == [144, 96, 90, 90]
    assert "c" not in {name for name, _, _ in places(read_tile_list(made.output))}
    left = {(x, y) for name, x, y in places(read_tile_list(made.output)) if name == "a"}
    assert left == {tuple(corner) for corner in corners_of()[6:].tolist()}


def test_a_test_slide_whose_bag_is_damaged_is_left_out_too(pool_folder, small, tmp_path) -> None:
    tests = Bags(small, tmp_path / "tests")
    tests.write("b", features_of(7))
    held_out = tests.write("c", features_of(8))
    bag = Path(held_out) / "c.h5"
    bag.write_bytes(bag.read_bytes()[:900])
    made = run(pool_folder, small, tmp_path / "out", held_out=held_out, held_out_cosine=1.0)
    assert {name for name, _, _ in places(read_tile_list(made.output))} == {"a"}
    assert [path for path, _ in made.refused] == [str(bag)]


def test_queries_find_their_like_up_to_a_cap(pool_folder, small, tmp_path) -> None:
    queries = Bags(small, tmp_path / "queries")
    query = queries.write("q", features_of(9)[[31, 44]])  # of kinds 1 and 2
    made = run(pool_folder, small, tmp_path / "out", query=query, k=10)
    assert Counter(kinds(made, made.chosen_M)) == {1: 10, 2: 10}
    capped = run(pool_folder, small, tmp_path / "capped", query=query, k=10, per_cluster=3)
    assert Counter(kinds(capped, capped.chosen_M)) == {1: 3, 2: 3}
    assert set(capped.chosen_M) < set(made.chosen_M)
    assert list(capped.counts) == ["in the pool", "near the queries", "after the cap", "listed"]


def test_filters_are_those_of_training(pool_folder, small, tmp_path) -> None:
    judges = TileFilters(hsv=HsvTissueFilter(min_share=0.4), pen=PenFilter())
    made = run(pool_folder, small, tmp_path / "out", filters=judges)
    wanted, rejected = set(), Counter()
    for name in "abc":
        with small.open_slide(name) as slide:
            for x, y in corners_of().tolist():
                tile = read_tile(slide, x, y, size_px=32, mpp=1.0)
                bad = [j.name for j in judges.chosen() if not j.keeps(tile, mpp=1.0)]
                rejected.update(bad[:1])
                wanted |= set() if bad else {(name, x, y)}
    assert 10 < len(wanted) < 100
    assert places(read_tile_list(made.output)) == wanted
    assert made.rejected == dict(rejected)
    assert made.counts["after filters"] == len(wanted)


def test_focus_is_judged_at_the_tiles_resolution_where_they_are_coarser(
    pool_folder, small, tmp_path
) -> None:
    judges = TileFilters(blur=BlurFilter(mpp=0.5, min_variance=0.001))
    assert run(pool_folder, small, tmp_path / "out", filters=judges).counts["listed"] > 0


def test_a_split_keeps_other_slides_out(pool_folder, small, tmp_path) -> None:
    made = run(pool_folder, small, tmp_path / "out", split="train")
    assert {name for name, _, _ in places(read_tile_list(made.output))} == {"a", "b"}
    assert made.refused == []


def test_what_it_was_made_from_is_written(pool_folder, small, tmp_path) -> None:
    made = run(pool_folder, small, tmp_path / "out", n_sample=20, dedup=0.999)
    record = json.loads((tmp_path / "out" / "curation.json").read_text())
    about = read_tile_list(made.output).about
    assert record["format"] == "curation/1"
    assert {name: record[name] for name in about} == about
    assert about["settings"]["n_sample"] == 20
    assert about["settings"]["filters"] == {}
    assert about["catalogue"] == small.fingerprint
    assert about["tiles"] == made.counts
    assert (len(about["bags_sha256"]), about["clusters"]) == (64, [4])
    assert about["encoder_fingerprint"] == "e" * 64


def test_slides_that_cannot_be_read_cost_their_tiles_where_pixels_are_judged(
    tmp_path: Path,
) -> None:
    own = make_catalogue(tmp_path / "slides")
    bags = Bags(own, tmp_path / "bags")
    for number, name in enumerate("abc"):
        folder = bags.write(name, features_of(number))
    (tmp_path / "slides" / "b.tif").unlink()
    made = run(folder, own, tmp_path / "out", filters=TileFilters(pen=PenFilter()))
    ((name, reason),) = made.refused
    assert name == "b"
    assert "48 tiles could not be read" in reason
    assert "cannot be found" in reason
    assert made.counts["after filters"] == 96


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"levels": (145,)}, "as many tiles as clusters; got 144 for 145"),
        ({"levels": (4, 9)}, "falling numbers of clusters"),
        ({"n_sample": 145}, "a sample of at most the 144 tiles that are left; got 145"),
        ({"dedup": 1.5}, "needs a cosine above 0, at most 1; got 1.5"),
    ],
)
def test_settings_that_do_not_fit_the_pool_are_refused(
    pool_folder, small, tmp_path, options, says
) -> None:
    with pytest.raises(ValueError, match=says):
        run(pool_folder, small, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_query_may_not_ask_for_more_or_find_too_little(pool_folder, small, tmp_path) -> None:
    query = Bags(small, tmp_path / "queries").write("q", features_of(9)[:2])
    with pytest.raises(ValueError, match="k from 1 to 144"):
        run(pool_folder, small, tmp_path / "out", query=query, k=145)
    with pytest.raises(ValueError, match="n from 0 to the 8 tiles there are; got 20"):
        run(pool_folder, small, tmp_path / "out", query=query, k=5, n_sample=20)


def test_pools_of_another_encoder_are_refused(pool_folder, small, tmp_path) -> None:
    other = Bags(small, tmp_path / "o").write("q", features_of(9), encoder_fingerprint="0" * 64)
    for option in ("query", "held_out"):
        with pytest.raises(BagError, match="made with encoder_fingerprint 000"):
            run(pool_folder, small, tmp_path / "out", **{option: other})


def test_nothing_left_is_refused_with_the_counts(pool_folder, small, tmp_path) -> None:
    with pytest.raises(BagError, match=r"no tile is left \(in the pool: 144, after filters: 0\)"):
        run(
            *(pool_folder, small, tmp_path / "out"),
            filters=TileFilters(blur=BlurFilter(min_variance=1e9)),
        )


def test_a_list_that_is_there_stays(pool_folder, small, tmp_path) -> None:
    made = run(pool_folder, small, tmp_path / "out")
    before = made.output.read_bytes()
    with pytest.raises(CatalogueError, match="is there already"):
        run(pool_folder, small, tmp_path / "out", n_sample=4)
    assert made.output.read_bytes() == before


def test_no_clusters_are_one(pool_folder, small, tmp_path) -> None:
    made = run(pool_folder, small, tmp_path / "out", levels=(), n_sample=30)
    assert made.path_NT.shape == (144, 0)
    assert len(read_tile_list(made.output)) == 30


def test_levels_fit_the_pool() -> None:
    found = {n: fitting_levels(n) for n in (1, 99, 900, 1000, 20_000, 10_000_000)}
    assert found == {
        **{1: (1,), 99: (1,), 900: (18,), 1000: (20, 2), 20_000: (400, 40)},
        10_000_000: (10_000, 1000),
    }
