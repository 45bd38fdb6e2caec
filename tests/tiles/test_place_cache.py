from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from column_catalogue import ColumnCatalogue

from anlage.tiles import place_cache
from anlage.tiles.place_cache import ENTRY_BYTES, PlaceCache


def cache(catalogue: ColumnCatalogue, **changed: Any) -> PlaceCache:
    settings = {"size_px": 64, "min_tissue": 0.6, "tiles_per_region": 4, "largest_view": 1.0}
    return PlaceCache(catalogue, **(settings | changed))  # type: ignore[arg-type]


def test_places_are_found_once_while_there_is_room() -> None:
    slides = ColumnCatalogue("abc")
    places = cache(slides)
    first = places.find("a", 0.5)
    assert places.find("a", 0.5) is first
    assert places.find("a", 1.0) is not first
    assert slides.asked == ["a", "a"]


def test_the_least_used_are_dropped_beyond_the_limit() -> None:
    slides = ColumnCatalogue("abc")
    found = [cache(slides).find(name, 0.5) for name in "abc"]
    sizes = [one.places.n_bytes + ENTRY_BYTES for one in found if one is not None]
    places = cache(slides, max_bytes=sum(sizes) - 1)  # any two
    slides.asked.clear()
    for name in "abacacacbcbcacacbcbcacac":
        assert places.find(name, 0.5) is not None
    assert slides.asked == ["a", "b", "c", "b", "a", "b", "a"]
    tight = cache(slides, max_bytes=1)
    slides.asked.clear()
    assert [tight.find(name, 0.5) is not None for name in "aab"] == [True] * 3
    assert slides.asked == ["a", "b"]  # the newest is kept whatever its size


def test_a_slide_without_a_place_is_looked_at_once() -> None:
    slides = ColumnCatalogue({"a": {"mask": np.zeros((80, 104), bool)}})
    places = cache(slides)
    assert places.find("a", 0.5) is places.find("a", 0.5) is None
    assert slides.asked == ["a"]
    assert places.unusable == {("a", 0.5): "no place holds 0.6 tissue"}


def test_of_slides_without_a_place_a_bounded_number_of_reasons_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Resolutions out of a range are all different; a long run must not collect them."""
    monkeypatch.setattr(place_cache, "MOST_UNUSABLE", 2)
    places = cache(ColumnCatalogue({"a": {"mask": np.zeros((80, 104), bool)}}))
    for mpp in (0.5, 0.6, 0.7, 0.8):
        assert places.find("a", mpp) is None
    assert list(places.unusable) == [("a", 0.5), ("a", 0.6)]


def test_shapes_are_those_of_the_level_that_is_read() -> None:
    levels = {
        "level_downsamples": [1.0, 4.0, 16.0],
        "level_tile_width": [256, 240, 128],
        "level_tile_height": [256, 200, 128],
    }
    places = cache(ColumnCatalogue({"a": levels}))
    for mpp, downsample, native in (
        (0.5, 1.0, (256, 256)),
        (1.0, 4.0, (240, 200)),
        (0.99, 4.0, (240, 200)),
        (0.97, 1.0, (256, 256)),
        (2.0, 4.0, (240, 200)),
    ):
        found = places.find("a", mpp)
        assert found is not None
        assert (found.shape.downsample, found.shape.native) == (downsample, native)
        assert found.shape.edge == 64 * mpp / 0.25
        assert found.slide_id == "a"


def test_threads_find_the_same() -> None:
    places = cache(ColumnCatalogue("abcdefgh"), max_bytes=20_000)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: places.find("abcdefgh"[i % 8], 0.5), range(200)))
    alone = [cache(ColumnCatalogue("abcdefgh")).find(name, 0.5) for name in "abcdefgh"]
    for i, one in enumerate(found):
        expected = alone[i % 8]
        assert one is not None
        assert expected is not None
        np.testing.assert_array_equal(one.places.run_starts, expected.places.run_starts)
