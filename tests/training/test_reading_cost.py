"""What a tile takes to read, beside the one that was measured and native tiles that are counted."""

from __future__ import annotations

import numpy as np
import pytest

from anlage.training.reading_cost import reading_cost
from anlage.training.tile_source import TileSource


def source(magnifications: object, **more: object) -> TileSource:
    return TileSource.model_validate({"magnifications": magnifications, **more})


def test_the_tile_that_was_measured_costs_what_was_measured() -> None:
    """docs/benchmarks.md: 0.093 MB and 3.1 requests a tile, 428 tiles/s of one thread."""
    found = reading_cost(source({0.5: 1.0}), size_px=256, slide_mpp=0.25)
    assert found.n_bytes == 93_000
    assert found.requests == pytest.approx(3.1, abs=0.05)
    assert found.tiles_per_s == 428
    assert not found.is_measured


@pytest.mark.parametrize(("size_px", "mpp", "field"), [(256, 0.25, 256), (392, 0.5, 784)])
def test_bytes_and_rows_go_with_native_tiles(size_px: int, mpp: float, field: int) -> None:
    """Tiles laid at random on a grid of 240 px, and what they touch counted."""
    corners = np.random.default_rng(0).uniform(0, 240, (200_000, 2))
    touched = np.floor((corners + field) / 240) + 1
    measured = np.floor((corners + 512) / 240) + 1
    found = reading_cost(source({mpp: 1.0}), size_px=size_px, slide_mpp=0.25)
    ratio = touched.prod(axis=1).mean() / measured.prod(axis=1).mean()
    assert found.n_bytes == pytest.approx(93_000 * ratio, rel=5e-3)
    assert found.tiles_per_s == pytest.approx(428 / ratio, rel=5e-3)
    assert found.requests == pytest.approx(touched[:, 1].mean(), rel=5e-3)


def test_the_coarsest_level_that_is_fine_enough_is_read() -> None:
    """1 µm is level 1 of a slide of 0.25 µm; 2 µm and 4 µm lie two and four pixels into it."""
    costs = {
        mpp: reading_cost(source({mpp: 1.0}), size_px=256, slide_mpp=0.25).n_bytes
        for mpp in (0.25, 0.5, 1.0, 2.0, 4.0)
    }
    assert costs[1.0] == costs[0.25] == costs[4.0]
    assert costs[2.0] == costs[0.5] == 93_000


def test_shares_and_ranges_are_averaged() -> None:
    one, two = (
        reading_cost(source({mpp: 1.0}), size_px=256, slide_mpp=0.25) for mpp in (0.25, 0.5)
    )
    both = reading_cost(source({0.25: 3.0, 0.5: 1.0}), size_px=256, slide_mpp=0.25)
    assert both.n_bytes == pytest.approx((3 * one.n_bytes + two.n_bytes) / 4)
    span = reading_cost(source({"low": 0.25, "high": 0.5}), size_px=256, slide_mpp=0.25)
    drawn = 0.25 * 2 ** np.random.default_rng(0).uniform(size=200_000)
    expected = 93_000 * np.mean((256 * drawn / 0.25 / 240 + 1) ** 2) / (512 / 240 + 1) ** 2
    assert span.n_bytes == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize(("k", "rate"), [(1, 428), (3, 428), (4, 1001), (16, 1251), (64, 1251)])
def test_regions_read_less_a_tile(k: int, rate: float) -> None:
    """docs/benchmarks.md: 9.7 native tiles a tile one by one, at most 3.7 in regions."""
    found = reading_cost(source({0.5: 1.0}, per_region=k), size_px=256, slide_mpp=0.25)
    assert found.n_bytes == pytest.approx(93_000 * (3.7 / 9.7 if k >= 4 else 1))
    assert found.tiles_per_s == rate
    assert found.requests <= 512 / 240 + 1


def test_a_measured_rate_is_taken_as_it_is() -> None:
    found = reading_cost(source({0.25: 1.0}), size_px=392, slide_mpp=0.25, loader_rate=50.0)
    assert (found.tiles_per_s, found.is_measured) == (50.0, True)
