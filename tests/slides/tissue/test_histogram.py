from __future__ import annotations

import numpy as np
import pytest

from anlage.slides.tissue import histogram as histogram_module
from anlage.slides.tissue.histogram import histogram, median, otsu_threshold, ranked
from reference.slow_otsu import slow_otsu


@pytest.mark.parametrize("seed", range(20))
def test_what_is_read_off_a_histogram_is_what_the_values_say(seed: int) -> None:
    generator = np.random.default_rng(seed)
    values = generator.integers(0, 60, generator.integers(1, 200)).astype(np.uint8)
    counts = histogram(values, 60)
    assert np.array_equal(counts, [(values == v).sum() for v in range(60)])
    assert median(counts) == np.median(values)
    assert [ranked(counts, i) for i in range(len(values))] == sorted(values)
    assert otsu_threshold(counts) == slow_otsu(values)


def test_a_large_plane_is_counted_in_pieces(
    generator: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(histogram_module, "AT_ONCE", 7)
    plane = generator.integers(0, 766, (9, 11)).astype(np.uint16)
    assert np.array_equal(histogram(plane, 766), np.bincount(plane.ravel(), minlength=766))


def test_otsu_of_one_value_splits_nothing() -> None:
    assert otsu_threshold(np.array([0, 0, 9])) == -1
