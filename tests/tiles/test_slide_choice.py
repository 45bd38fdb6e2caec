from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anlage.tiles.magnification import ContinuousMpp, DiscreteMpp, Magnifications
from anlage.tiles.slide_choice import SlideChoice
from anlage.tiles.windows import Windows

SHARES = {0.25: 0.2, 0.5: 0.4, 1.0: 0.2, 2.0: 0.2}
FINEST = [0.25, 0.5, 0.25, 0.5, 1.0]
COARSEST = [9.0, 9.0, 0.6, 9.0, 9.0]  # the third is small


def choice(law: Magnifications, weights: object, finest: object, coarsest: object) -> SlideChoice:
    span = law.span(np.array(finest, float), np.array(coarsest, float))
    return SlideChoice(law, np.array(weights, float), span=span)


def numbers(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Evenly spaced pairs over the unit square."""
    middle = (np.arange(n) + 0.5) / n
    first, second = np.meshgrid(middle, middle)
    return first.ravel(), second.ravel()


def test_resolution_by_its_share_then_slide_by_its_weight() -> None:
    weights = np.array([3.0, 1.0, 2.0, 0.5, 1.5])
    row_N, mpp_N = choice(DiscreteMpp(SHARES), weights, FINEST, COARSEST).draw(*numbers(1000))
    for mpp, share in SHARES.items():
        can = (np.array(FINEST) <= mpp) & (np.array(COARSEST) >= mpp)
        expected = share * weights * can / weights[can].sum()
        drawn = np.bincount(row_N[mpp_N == mpp], minlength=5) / len(row_N)
        np.testing.assert_allclose(drawn, expected, atol=2e-3)


def test_a_continuous_range_keeps_its_law_whatever_slides_can_give() -> None:
    law = ContinuousMpp(0.25, 2.0)
    row_N, mpp_N = choice(law, [1, 1], [0.25, 1.0], [9, 9]).draw(*numbers(1000))
    assert np.mean(row_N == 1) == pytest.approx(1 / 6, abs=2e-3)  # half of one of three doublings
    assert mpp_N[row_N == 1].min() >= 1.0
    doublings = np.histogram(np.log2(mpp_N), bins=[-2, -1.5, -1, -0.5, 0, 0.5, 1])[0]
    np.testing.assert_allclose(doublings / len(mpp_N), 1 / 6, atol=2e-3)
    linear = choice(ContinuousMpp(1.0, 3.0, "linear"), [1], [0.5], [9]).draw(*numbers(300))[1]
    assert np.quantile(linear, [0, 0.25, 1]) == pytest.approx([1.0, 1.5, 3.0], abs=0.01)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n_slides=st.integers(64, 400),
    window=st.integers(0, 10**6),
    is_mixed=st.booleans(),
)
def test_a_window_draws_each_slide_as_often_as_its_share_says(
    seed: int, n_slides: int, window: int, is_mixed: bool
) -> None:
    """W different slides where no share exceeds 1/W; else its share of W, rounded down or up."""
    generator = np.random.default_rng(seed)
    weights = generator.random(n_slides) ** generator.choice([0.2, 3.0])
    finest = generator.choice([0.25, 0.5, 1.0] if is_mixed else [0.25], n_slides)
    finest[0], weights[0] = 0.25, max(weights[0], 0.1)
    drawing = choice(DiscreteMpp(SHARES), weights, finest, np.full(n_slides, 9.0))
    expected_S = np.zeros(n_slides)
    for mpp, share in SHARES.items():
        expected_S += share * weights * (finest <= mpp) / weights[finest <= mpp].sum()
    quantiles = Windows(seed, 64, 1).quantiles(np.arange(64 * window, 64 * window + 64))
    row_W, mpp_W = drawing.draw(*quantiles)
    n_drawn_S = np.bincount(row_W, minlength=n_slides)
    assert (np.abs(n_drawn_S - 64 * expected_S) < 1 + 1e-9).all()
    if expected_S.max() <= 1 / 64:
        assert len(set(row_W.tolist())) == 64
    assert (finest[row_W] <= mpp_W).all()
    if not is_mixed:
        n_of_mpp = [int((mpp_W == mpp).sum()) for mpp in SHARES]
        assert (np.abs(np.array(n_of_mpp) - 64 * np.array(list(SHARES.values()))) < 1 + 1e-9).all()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), law=st.sampled_from(["log", "linear", "discrete"]))
def test_nothing_is_drawn_that_a_slide_cannot_give(seed: int, law: str) -> None:
    generator = np.random.default_rng(seed)
    finest = generator.choice([0.25, 0.2528, 0.49, 0.5, 1.01], 30)
    coarsest = finest * generator.uniform(0.5, 9, 30)  # some cannot give anything
    finest[0], coarsest[0] = 0.25, 2.0
    weights = generator.random(30) * (generator.random(30) < 0.8)
    weights[0] = 1e-6
    laws: Magnifications = (
        DiscreteMpp(SHARES) if law == "discrete" else ContinuousMpp(0.25, 2.0, law)  # type: ignore[arg-type]
    )
    drawing = choice(laws, weights, finest, coarsest)
    assert len(drawing.uncovered) == 0
    mpp_q_N = generator.choice([0.0, 0.4, np.nextafter(1, 0)], 2000)
    row_N, mpp_N = drawing.draw(generator.random(2000), mpp_q_N)
    assert (weights[row_N] > 0).all()
    assert (mpp_N >= finest[row_N] * (1 - 1e-9)).all()
    assert (mpp_N <= coarsest[row_N] * (1 + 1e-9)).all()
    for mpp in mpp_N[:20].tolist():
        for slide_q in (0.0, 0.3, np.nextafter(1, 0)):
            row = drawing.another(slide_q, mpp)
            if row is not None:
                assert weights[row] > 0
                assert finest[row] * (1 - 1e-9) <= mpp <= coarsest[row] * (1 + 1e-9)


@pytest.mark.parametrize("law", [DiscreteMpp(SHARES), ContinuousMpp(0.25, 2.0)])
def test_another_slide_is_drawn_by_weight_among_those_that_give_the_resolution(
    law: Magnifications,
) -> None:
    weights = np.array([3.0, 1.0, 2.0, 0.5, 1.5])
    drawing = choice(law, weights, FINEST, COARSEST)
    for mpp in (0.25, 0.5, 1.0, 2.0):
        rows = [drawing.another(q, mpp) for q in (np.arange(4000) + 0.5) / 4000]
        drawn = np.bincount([row for row in rows if row is not None], minlength=5)
        can = (np.array(FINEST) <= mpp) & (np.array(COARSEST) >= mpp)
        np.testing.assert_allclose(
            drawn / drawn.sum(), weights * can / weights[can].sum(), atol=2e-3
        )


def test_resolutions_that_no_slide_can_give_are_named() -> None:
    drawing = choice(DiscreteMpp(SHARES), [1, 0], [0.5, 0.25], [1.5, 9])
    assert drawing.uncovered.tolist() == [0.25, 2.0]
    assert drawing.is_usable.tolist() == [True, False]
    for weights in np.random.default_rng(0).random((50, 3)):  # what remains is 0, or nearly
        rounded = choice(DiscreteMpp(SHARES), weights, [0.25] * 3, [0.3, 0.6, 1.1])
        assert rounded.uncovered.tolist() == [2.0]
    assert choice(ContinuousMpp(0.25, 2), [1, 1], [0.5, 0.25], [2, 0.4]).uncovered == pytest.approx(
        [np.sqrt(0.4 * 0.5)]
    )


@pytest.mark.parametrize("shares", [{}, {0.5: 0.0}, {-0.5: 1.0}, {0.5: float("nan")}, {0.5: -1.0}])
def test_a_mixture_out_of_range_is_refused(shares: dict[float, float]) -> None:
    with pytest.raises(ValueError, match=r"magnifications: needs an mpp > 0 .*; got .*\. Give"):
        DiscreteMpp(shares)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0), (1.0, float("inf"))])
def test_a_range_out_of_range_is_refused(bounds: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"ContinuousMpp: needs 0 < low < high .*; got"):
        ContinuousMpp(*bounds)
