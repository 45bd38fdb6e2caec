from __future__ import annotations

import logging
import weakref
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from column_catalogue import ColumnCatalogue
from small_catalogue import make_catalogue

from anlage.errors import TrainingError
from anlage.geometry import level_px
from anlage.slides.levels import read_tile
from anlage.tiles.magnification import ContinuousMpp
from anlage.tiles.sampling import TileRequest, TileSampler, sampler_from_catalogue
from anlage.tiles.windows import batch_indices
from reference.tile_tissue import tissue_of_tile

MAGNIFICATIONS = {0.5: 2.0, 1.0: 1.0}
EMPTY = np.zeros((80, 104), bool)
FULL = np.ones((80, 104), bool)
IN_TILES = {"level_tile_width": [50], "level_tile_height": [40]}


def sampler(slides: Any = ("a", "b"), **changed: Any) -> TileSampler:
    catalogue = slides if isinstance(slides, ColumnCatalogue) else ColumnCatalogue(slides)
    arguments: dict[str, Any] = {
        "seed": 5,
        "size_px": 64,
        "batch_size": 16,
        "magnifications": MAGNIFICATIONS,
        "min_tissue": 0.6,
        **changed,
    }
    return sampler_from_catalogue(catalogue, **arguments)  # type: ignore[arg-type]


def many(n: int, **changed: Any) -> dict[str, dict[str, Any]]:
    return {f"s{i}": dict(changed) for i in range(n)}


def regions(drawing: TileSampler, n: int) -> list[TileRequest]:
    return [tile for region in range(n) for tile in drawing.draw_region(region)]


def test_same_seed_same_tiles_in_any_order() -> None:
    forwards, backwards = sampler(), sampler()
    expected = [forwards.draw(g) for g in range(50)]
    assert [backwards.draw(g) for g in reversed(range(50))] == expected[::-1]
    assert [sampler(seed=6).draw(g) for g in range(50)] != expected


@pytest.mark.parametrize("tiles_per_region", [1, 4, 5])
def test_a_region_gives_the_tiles_of_its_samples(tiles_per_region: int) -> None:
    drawing = sampler(many(9), tiles_per_region=tiles_per_region)
    for region in (0, 7, 100):
        tiles = drawing.draw_region(region)
        assert [tile.g for tile in tiles] == drawing.samples_of(region).tolist()
        assert [drawing.draw(tile.g) for tile in tiles] == tiles
        assert {tile.attempt for tile in tiles} == {0}
        assert len({(tile.slide, tile.slide_id, tile.mpp) for tile in tiles}) == 1
        assert len({(tile.x, tile.y) for tile in tiles}) == len(tiles)


def test_ranks_read_the_tiles_that_one_rank_would() -> None:
    drawing = sampler(many(5), batch_size=32, tiles_per_region=4)
    steps = range(drawing.steps_per_window)
    alone = {g: drawing.draw(g) for s in steps for g in batch_indices(s, batch_size=32).tolist()}
    for world_size in (2, 4, 8):
        read: dict[int, TileRequest] = {}
        for rank in range(world_size):
            share = {"batch_size": 32, "rank": rank, "world_size": world_size}
            g_N = np.concatenate([batch_indices(s, **share) for s in steps])
            mine = np.unique(drawing.region_of(g_N)).tolist()
            tiles = [tile for region in mine for tile in drawing.draw_region(region)]
            assert sorted(tile.g for tile in tiles) == g_N.tolist()  # whole regions
            read |= {tile.g: tile for tile in tiles}
        assert read == alone


def test_threads_do_not_disturb_each_other() -> None:
    slides = many(6) | {"e": {"mask": EMPTY}}
    alone = [sampler(slides, tiles_per_region=4).draw_region(region) for region in range(40)]
    drawing = sampler(slides, tiles_per_region=4)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(drawing.draw_region, range(40))) == alone


@pytest.mark.parametrize("tiles_per_region", [1, 4, 16])
def test_every_tile_lies_inside_and_holds_enough_tissue(tiles_per_region: int) -> None:
    slides: dict[str, dict[str, Any]] = {
        "a": IN_TILES,
        "b": {"mpp": 0.2521},
        "c": {"mask_mpp": 8.3, "level_tile_width": [240], "level_tile_height": [240]},
    }
    catalogue = ColumnCatalogue(slides)
    drawing = sampler(catalogue, tiles_per_region=tiles_per_region)
    seen = set()
    for tile in regions(drawing, 600 // tiles_per_region):
        row, mask = catalogue.row(tile.slide_id), catalogue.mask(tile.slide_id)
        assert tile.slide_id == "abc"[tile.slide]
        per_um = 1 / Fraction(str(row.mpp))
        edge = 64 * Fraction(str(tile.mpp)) * per_um
        assert min(tile.x, tile.y) >= 0
        assert tile.x + edge <= row.width
        assert tile.y + edge <= row.height
        per_mask_px = Fraction(str(mask.mpp)) * per_um
        tissue = tissue_of_tile(mask.mask, tile.x, tile.y, edge=edge, per_mask_px=per_mask_px)
        assert tissue >= Fraction(6, 10)
        seen.add((tile.slide, tile.mpp))
    assert len(seen) == 6


@pytest.mark.parametrize(("tiles_per_region", "across"), [(4, 5), (16, 10)])
def test_tiles_of_a_region_touch_one_block_of_native_tiles(
    tiles_per_region: int, across: int
) -> None:
    """128 level-0 pixels in native tiles of 50 x 40: sqrt(k) edges are 5 x 6 and 10 x 12."""
    drawing = sampler(
        many(3, mask=FULL, **IN_TILES),
        magnifications={0.5: 1.0},
        tiles_per_region=tiles_per_region,
    )
    widest = 0
    for region in range(60):
        x, y = np.array([(tile.x, tile.y) for tile in drawing.draw_region(region)]).T
        columns = (x.max() + 127) // 50 - x.min() // 50 + 1
        rows = (y.max() + 127) // 40 - y.min() // 40 + 1
        assert columns <= across
        assert rows <= across * 6 // 5
        widest = max(widest, columns)
    assert widest == across


def test_regions_of_pyramids_lie_on_the_level_that_is_read() -> None:
    levels = {
        "level_downsamples": [1.0, 4.0],
        "level_tile_width": [16, 50],
        "level_tile_height": [16, 50],
    }
    drawing = sampler(many(2, mask=FULL, **levels), magnifications={1.0: 1.0}, tiles_per_region=4)
    for region in range(40):
        x = np.array([level_px(t.x, downsample=4.0) for t in drawing.draw_region(region)])
        assert (x.max() + 63) // 50 - x.min() // 50 + 1 <= 3


def test_the_first_tile_of_a_region_is_any_place() -> None:
    mask = np.zeros((80, 104), bool)
    mask[:8, :20] = mask[40:48, 40:60] = True
    drawing = sampler({"a": {"mask": mask}}, magnifications={0.5: 1.0}, min_tissue=1.0)
    is_upper = [drawing.draw(g).y < 1000 for g in range(2000)]
    assert abs(np.mean(is_upper) - 0.5) < 0.05


def test_a_window_holds_as_many_slides_as_regions_when_there_are_enough() -> None:
    drawing = sampler(many(150), tiles_per_region=4)
    assert drawing.steps_per_window == 16
    tiles = regions(drawing, 64)
    assert len({tile.slide for tile in tiles}) == 64
    assert sorted(tile.g for tile in tiles) == list(range(256))
    n_fine = sum(tile.mpp == 0.5 for tile in tiles)
    assert abs(n_fine - 256 * 2 / 3) <= 4


def test_draw_many_gives_the_first_choices() -> None:
    drawing = sampler(many(30), tiles_per_region=4, balance={"slide_id": 0.5})
    g_N = np.random.default_rng(0).permutation(700)
    draws = drawing.draw_many(g_N)
    tiles = [drawing.draw(g) for g in g_N.tolist()]
    assert draws.slide.tolist() == [tile.slide for tile in tiles]
    assert draws.mpp.tolist() == [tile.mpp for tile in tiles]
    assert draws.numbers.shape == (700, 3)
    np.testing.assert_array_equal(draws.region, drawing.region_of(g_N))


def test_a_sampler_is_freed_with_its_last_reference() -> None:
    """Weights of millions of slides must not wait for the garbage collector."""
    drawing = sampler()
    drawing.draw(0)
    reference = weakref.ref(drawing)
    del drawing
    assert reference() is None


def test_balance_and_base_decide_how_often_slides_are_drawn() -> None:
    slides = {f"s{i}": {"stain": "rare" if i == 0 else "H&E"} for i in range(10)}
    drawing = sampler(slides, balance={"stain": 1.0})
    assert np.mean(drawing.draw_many(np.arange(6400)).slide == 0) == pytest.approx(0.5, abs=1e-3)
    areas = {f"s{i}": {"tissue_area_mm2": float(i)} for i in range(5)}
    drawn = sampler(areas, base="tissue_area").draw_many(np.arange(6400)).slide
    np.testing.assert_allclose(np.bincount(drawn) / 6400, np.arange(5) / 10, atol=2e-3)


def test_slides_that_are_never_drawn_do_not_count_in_frequencies() -> None:
    slides = {"a": {"stain": "IHC"}, "b": {"stain": "H&E"}, "c": {"stain": "H&E", "mpp": 2.0}}
    drawn = sampler(slides, balance={"stain": 1.0}).draw_many(np.arange(640)).slide
    assert np.bincount(drawn, minlength=3).tolist() == [320, 320, 0]


def test_attempts_are_replaced_independently() -> None:
    slides = many(20) | {"empty": {"mask": EMPTY, "tissue_area_mm2": 400.0}}
    drawing = sampler(slides, base="tissue_area")
    assert len({drawing.draw(3, attempt=k).slide for k in range(1, 21)}) > 5
    assert len({drawing.draw(g).slide for g in range(20)}) > 5


def test_another_attempt_is_another_tile_and_stays_the_same() -> None:
    drawing = sampler(tiles_per_region=4)
    attempts = [drawing.draw(9, attempt=k) for k in range(20)]
    assert len({(t.slide, t.x, t.y, t.mpp) for t in attempts}) == 20
    assert [t.attempt for t in attempts] == list(range(20))
    assert {t.g for t in attempts} == {9}
    assert {t.slide for t in attempts} == {0, 1}
    again = sampler(tiles_per_region=4)
    assert [again.draw(9, attempt=k) for k in reversed(range(20))] == attempts[::-1]


def test_masks_are_looked_at_when_a_slide_is_drawn() -> None:
    catalogue = ColumnCatalogue(many(50))
    drawing = sampler(catalogue)
    drawing.draw_many(np.arange(1000))
    assert catalogue.asked == []
    drawn = {drawing.draw(g).slide_id for g in range(10)}
    assert set(catalogue.asked) == drawn


def test_slides_without_a_place_are_replaced_at_the_same_mpp_and_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    thin = np.zeros((80, 104), bool)
    thin[20:25, 20:25] = True  # holds a tile at 0.5 mpp, none at 1
    slides = many(20) | {"empty": {"mask": EMPTY}, "thin": {"mask": thin}}
    slides["cut"] = {"mask": np.ones((80, 50), bool)}
    drawing = sampler(slides)
    with caplog.at_level(logging.WARNING):
        tiles = [drawing.draw(g) for g in range(1500)]
    assert set(drawing.unusable) == {
        *(("empty", 0.5), ("empty", 1.0), ("thin", 1.0)),
        *(("cut", 0.5), ("cut", 1.0)),
    }
    assert drawing.unusable["empty", 0.5] == "no place holds 0.6 tissue"
    assert "covers the slide" in drawing.unusable["cut", 1.0]
    assert [r.getMessage().split(":")[0] for r in caplog.records].count("empty") == 1
    assert {t.slide_id for t in tiles} == {*many(20), "thin"}
    assert {t.mpp for t in tiles if t.slide_id == "thin"} == {0.5}
    first_choices = drawing.draw_many(np.arange(1500))
    assert [t.mpp for t in tiles] == first_choices.mpp.tolist()
    backwards = sampler(slides)
    assert [backwards.draw(g) for g in reversed(range(1500))] == tiles[::-1]


def test_slides_too_coarse_or_too_small_are_not_drawn(caplog: pytest.LogCaptureFixture) -> None:
    slides: dict[str, dict[str, Any]] = {
        "a": {},
        "small": {"width": 200, "height": 300, "mask": np.ones((10, 7), bool)},
        "coarse": {"mpp": 0.6, "mask": np.ones((190, 247), bool)},
        "near": {"mpp": 0.509, "mask": np.ones((161, 210), bool)},
        "none": {"mpp": 1.5},
        "glass": {"tissue_area_mm2": 0.0},
    }
    with caplog.at_level(logging.WARNING):
        drawing = sampler(slides)
    assert "2 of 6 slides" in caplog.text
    assert "(none, glass)" in caplog.text
    drawn = {(drawing.draw(g).slide_id, drawing.draw(g).mpp) for g in range(300)}
    assert drawn == {
        *(("a", 0.5), ("a", 1.0), ("small", 0.5), ("coarse", 1.0)),
        *(("near", 0.5), ("near", 1.0)),
    }
    assert drawing.unusable == {}


def test_a_continuous_range_is_drawn() -> None:
    drawing = sampler(many(40), magnifications=ContinuousMpp(0.25, 2.0), tiles_per_region=4)
    mpp = np.array([drawing.draw_region(region)[0].mpp for region in range(64)])
    assert len(set(mpp.tolist())) == 64
    counts = np.histogram(np.log2(mpp), bins=[-2, -1, 0, 1])[0]
    assert (np.abs(counts - 64 / 3) <= 1).all()


def test_views_share_a_centre_and_lie_on_the_slide() -> None:
    drawing = sampler(many(5, mask=FULL), view_mpp_factors=(1.0, 2.0, 0.5), tiles_per_region=4)
    for tile in regions(drawing, 64):
        own, wide, near = tile.views
        assert (own.x, own.y, own.mpp, own.size_px) == (tile.x, tile.y, tile.mpp, tile.size_px)
        assert (wide.mpp, near.mpp) == (2 * tile.mpp, tile.mpp / 2)
        for view in tile.views:
            edge = view.size_px * view.mpp / 0.25
            assert abs((view.x + edge / 2) - (own.x + 32 * tile.mpp / 0.25)) <= 1
            assert min(view.x, view.y) >= 0
            assert view.x + edge <= 3290
            assert view.y + edge <= 2530


@pytest.mark.parametrize(("mpp", "factor"), [(0.25, 0.5), (2.0, 8.0)])
def test_views_that_no_slide_can_give_are_refused(mpp: float, factor: float) -> None:
    magnifications = {0.5: 1.0, mpp: 1.0}
    sampler(magnifications=magnifications)
    with pytest.raises(TrainingError, match=rf"64 px tiles at {mpp:g} mpp"):
        sampler(magnifications=magnifications, view_mpp_factors=(1.0, factor))


def test_a_slide_in_quarantine_is_drawn_no_more() -> None:
    free, drawing = (sampler(many(6), tiles_per_region=2) for _ in range(2))
    n_steps = free.steps_per_window
    drawing.quarantine("s2", from_step=3 * n_steps)
    drawing.quarantine("s2", from_step=2 * n_steps)
    samples = range(4 * n_steps * 16)
    before, after = [free.draw(g) for g in samples], [drawing.draw(g) for g in samples]
    first = 2 * n_steps * 16
    assert after[:first] == before[:first]
    assert any(tile.slide_id == "s2" for tile in before[first:])
    assert all(tile.slide_id != "s2" for tile in after[first:])
    kept = [(old, new) for old, new in zip(before, after, strict=True) if old.slide_id != "s2"]
    assert all(old == new for old, new in kept)
    assert [tile.mpp for tile in before] == [tile.mpp for tile in after]
    attempts = {drawing.draw(first, attempt=k).slide_id for k in range(1, 60)}
    assert attempts == set(many(6)) - {"s2"}
    with pytest.raises(ValueError, match=rf"first step of a window of {n_steps}; got 1\."):
        drawing.quarantine("s0", from_step=1)


def test_nothing_to_draw_is_refused_with_the_reason() -> None:
    nothing = sampler({"empty": {"mask": EMPTY}})
    for attempt in (0, 1):
        with pytest.raises(TrainingError, match=r"^empty: .*no place holds 0\.6.*Lower min_tis"):
            nothing.draw(0, attempt=attempt)
    with pytest.raises(TrainingError, match=r"slides\.parquet: needs .* at 0\.5 mpp; all 2 are"):
        sampler(many(2, mpp=1.0))
    with pytest.raises(TrainingError, match=r"at 0\.5, 1 mpp; all 2 are .* without tissue"):
        sampler(many(2, tissue_area_mm2=0.0))


@pytest.mark.parametrize(
    "changed",
    [
        {"size_px": 0},
        {"batch_size": 0},
        {"tiles_per_region": 0},
        {"min_tissue": 1.5},
        {"view_mpp_factors": ()},
        {"view_mpp_factors": (2.0, 1.0)},
        {"view_mpp_factors": (1.0, 0.0)},
    ],
)
def test_settings_out_of_range_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"TileSampler: needs .*; got .*\. Correct"):
        sampler(**changed)


def test_no_slide_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one slide; got 0"):
        sampler({})


def test_draws_are_pinned() -> None:
    """A silent change of the stream would make resumed runs wrong and others incomparable."""
    drawing = sampler({"a": IN_TILES, "b": {}}, seed=42, tiles_per_region=4)
    drawn = [drawing.draw(g, attempt=k) for g, k in ((0, 0), (1, 0), (1, 1), (10**12, 0))]
    assert [(t.slide_id, t.x, t.y, t.mpp) for t in drawn] == [
        ("b", 2329, 935, 0.5),
        ("a", 1416, 1728, 0.5),
        ("a", 2464, 1571, 0.5),
        ("a", 789, 1452, 0.5),
    ]


def test_a_real_catalogue_is_drawn_from(tmp_path: Path) -> None:
    """110 px squares of tissue at 1 mpp, in glass of 256 x 192."""
    slides = make_catalogue(tmp_path, 3)
    drawing = sampler_from_catalogue(
        slides.select(split="train"),
        seed=0,
        size_px=32,
        batch_size=8,
        magnifications={1.0: 1.0},
        min_tissue=0.9,
        tiles_per_region=4,
        balance={"patient_id": 1.0, "grade": 0.5},
    )
    for step in range(20):
        tiles = [drawing.draw(g) for g in range(8 * step, 8 * step + 8)]
        assert {tile.slide_id for tile in tiles} <= {"a", "b"}
        for tile in tiles:
            assert min(tile.x, tile.y) >= 30
            assert max(tile.x, tile.y) + 32 <= 160
            with slides.open_slide(tile.slide_id) as slide:
                pixels = read_tile(slide, tile.x, tile.y, size_px=32, mpp=1.0)
            assert np.mean(pixels[..., 1] < 150) > 0.8
