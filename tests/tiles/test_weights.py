from __future__ import annotations

import numpy as np
import pytest
from column_catalogue import ColumnCatalogue
from hypothesis import given, settings
from hypothesis import strategies as st

from anlage.tiles.weights import balanced, base_weights

VALUES = st.sampled_from(["a", "b", "c", None])


def catalogue(stains: list[str | None], tissues: list[str | None] | None = None) -> ColumnCatalogue:
    tissues = tissues or stains
    rows = enumerate(zip(stains, tissues, strict=True))
    return ColumnCatalogue(
        {
            f"s{i}": {"stain": stain, "tissue": tissue, "tissue_area_mm2": float(i % 4)}
            for i, (stain, tissue) in rows
        }
    )


def share_of_values(values: list[str | None], weight_S: np.ndarray) -> dict[str | None, float]:
    total = dict.fromkeys(values, 0.0)
    for value, weight in zip(values, weight_S, strict=True):
        total[value] += weight / weight_S.sum()
    return total


@settings(max_examples=50, deadline=None)
@given(stains=st.lists(VALUES, min_size=1, max_size=40), seed=st.integers(0, 99))
def test_alpha_1_makes_the_values_of_a_column_equally_likely(
    stains: list[str | None], seed: int
) -> None:
    """Whatever slides weighed before; a null is a value of its own."""
    before_S = np.random.default_rng(seed).random(len(stains)) + 0.01
    shares = share_of_values(stains, balanced(before_S, catalogue(stains), {"stain": 1.0}))
    assert list(shares.values()) == pytest.approx([1 / len(shares)] * len(shares))


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=40),
    alphas=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_axes_multiply(
    rows: list[tuple[str | None, str | None]], alphas: tuple[float, float]
) -> None:
    stains, tissues = (list(column) for column in zip(*rows, strict=True))
    axes = {"stain": alphas[0], "tissue": alphas[1]}
    drawn = balanced(np.ones(len(rows)), catalogue(stains, tissues), axes)
    expected = [
        (stains.count(stain) / len(rows)) ** -alphas[0]
        * (tissues.count(tissue) / len(rows)) ** -alphas[1]
        for stain, tissue in rows
    ]
    np.testing.assert_allclose(drawn, expected)


def test_alpha_0_changes_nothing() -> None:
    before_S = np.array([0.3, 2.0, 0.0])
    drawn = balanced(before_S, catalogue(["a", "b", "b"]), {"stain": 0.0})
    np.testing.assert_array_equal(drawn, before_S)


def test_slides_that_are_not_drawn_count_in_no_frequency() -> None:
    before_S = np.array([1.0, 1.0, 1.0, 0.0, 0.0])
    drawn = balanced(before_S, catalogue(["a", "a", "b", "b", "c"]), {"stain": 1.0})
    assert drawn / drawn.sum() == pytest.approx([0.25, 0.25, 0.5, 0.0, 0.0])


def test_a_patient_with_many_slides_can_count_as_one() -> None:
    slides = {f"s{i}": {"patient_id": "many" if i < 8 else f"p{i}"} for i in range(10)}
    drawn = balanced(np.ones(10), ColumnCatalogue(slides), {"patient_id": 1.0})
    assert drawn / drawn.sum() == pytest.approx([1 / 24] * 8 + [1 / 3] * 2)


def test_base_weights_count_slides_or_their_tissue() -> None:
    slides = catalogue(["a"] * 5)
    assert base_weights(slides, "slide", min_tissue=0.5).tolist() == [0, 1, 1, 1, 0]
    assert base_weights(slides, "slide", min_tissue=0.0).tolist() == [1, 1, 1, 1, 1]
    assert base_weights(slides, "tissue_area", min_tissue=0.5).tolist() == [0, 1, 2, 3, 0]
    with pytest.raises(ValueError, match=r"needs a base of slide or tissue_area; got 'area'"):
        base_weights(slides, "area", min_tissue=0.5)


def test_a_column_that_is_not_there_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"got 'stian'\. Did you mean 'stain'\?"):
        balanced(np.ones(1), catalogue(["a"]), {"stian": 0.5})
    with pytest.raises(ValueError, match=r"got 'zzz'\. It has slide_id, width"):
        balanced(np.ones(1), catalogue(["a"]), {"zzz": 0.0})


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_an_alpha_out_of_range_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"needs an alpha from 0 to 1; got .* for 'stain'"):
        balanced(np.ones(1), catalogue(["a"]), {"stain": alpha})
