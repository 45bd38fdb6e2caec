"""Orders of slides: a function of seed and place, whoever asks and wherever they begin."""

from itertools import islice

import numpy as np
import pytest

from anlage.bags.bag_draws import epoch_order, step_draws
from anlage.tiles.keyed_random import Purpose, uniforms

SLIDES = [f"s{number}" for number in range(7)]


def drawn(first, last, *, seed=3, batch_size=4):
    steps = step_draws(SLIDES, seed=seed, batch_size=batch_size, first_step=first, last_step=last)
    return list(steps)


def test_an_epoch_sorts_the_slides_by_their_own_numbers():
    for epoch in (0, 5):
        number = [
            uniforms(1, seed=3, g=g, purpose=Purpose.BAG_ORDER, item=epoch)[0] for g in range(7)
        ]
        wanted = [SLIDES[place] for place in np.argsort(number)]
        assert epoch_order(SLIDES, seed=3, epoch=epoch) == wanted


def test_orders_are_even():
    """Each of 3! orders as often as any other: chi-squared with 5 degrees, p = 0.001 at 20.5."""
    counts = {}
    for epoch in range(1200):
        order = tuple(epoch_order(["a", "b", "c"], seed=0, epoch=epoch))
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    assert sum((n - 200) ** 2 / 200 for n in counts.values()) < 20.5


def test_steps_run_through_epochs_without_a_gap():
    draws = [draw for step in drawn(0, 14) for draw in step]
    assert [g for g, _ in draws] == list(range(56))
    for epoch in range(8):
        order = [slide for _, slide in draws[7 * epoch : 7 * epoch + 7]]
        assert order == epoch_order(SLIDES, seed=3, epoch=epoch)


def test_a_run_that_begins_anywhere_sees_what_it_would_have_seen():
    whole = drawn(0, 20)
    for first in (1, 6, 13):
        assert drawn(first, 20) == whole[first:]
    assert drawn(0, 20, seed=4) != whole
    assert drawn(5, 5) == []


def test_a_larger_batch_has_the_same_draws():
    small = [draw for step in drawn(0, 12, batch_size=1) for draw in step]
    large = [draw for step in drawn(0, 2, batch_size=6) for draw in step]
    assert small == large


def test_a_batch_larger_than_the_slides_takes_some_twice():
    step = next(islice(step_draws(SLIDES[:2], seed=0, batch_size=5, first_step=0, last_step=1), 1))
    assert [slide for _, slide in step].count("s0") in (2, 3)


@pytest.mark.parametrize("batch_size", [5, 16])
def test_a_step_of_distinct_slides_keeps_the_first_draw_of_each(batch_size):
    """Of a batch across two epochs, and of one larger than all slides."""
    given = {"seed": 3, "batch_size": batch_size, "first_step": 0, "last_step": 9}
    plain = list(step_draws(SLIDES, **given))
    found = list(step_draws(SLIDES, is_distinct=True, **given))
    assert found != plain
    for step, whole in zip(found, plain, strict=True):
        slides = [slide for _, slide in whole]
        assert {slide for _, slide in step} == set(slides)
        assert step == [draw for n, draw in enumerate(whole) if slides.index(draw[1]) == n]


@pytest.mark.parametrize(("slides", "batch_size"), [([], 1), (SLIDES, 0)])
def test_draws_of_nothing_are_refused(slides, batch_size):
    with pytest.raises(ValueError, match="needs slides and a batch of at least 1"):
        next(step_draws(slides, seed=0, batch_size=batch_size, first_step=0, last_step=1))
