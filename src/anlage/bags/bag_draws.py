"""Which bags a step takes: an order of the seed, epoch after epoch, that can begin anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from anlage.tiles.keyed_random import Purpose, words_of


def epoch_order(slide_ids: Sequence[str], *, seed: int, epoch: int) -> list[str]:
    """The slides in the order in which an epoch takes them: a function of its arguments alone.

    Args:
        slide_ids: The slides, in an order that stays the same between runs.
        seed: Seed of the run, 0 to 2**64 - 1.
        epoch: Which pass over the slides, from 0.
    """
    number_N = np.arange(len(slide_ids))
    key = words_of(1, seed=seed, g_N=number_N, purpose=Purpose.BAG_ORDER, item_N=epoch)
    return [slide_ids[number] for number in np.argsort(key[:, 0], kind="stable").tolist()]


def step_draws(
    slide_ids: Sequence[str],
    *,
    seed: int,
    batch_size: int,
    first_step: int,
    last_step: int,
    is_distinct: bool = False,
) -> Iterator[list[tuple[int, str]]]:
    """The bags of each step from ``first_step`` to before ``last_step``.

    Draw g = step * batch_size + slot is the slide at place g mod n of epoch g // n, so that epochs
    follow each other without a gap, a step may lie in two, and a run that begins at any step sees
    what it would have seen. A rank takes a slice of each step.

    Args:
        slide_ids: The slides, in an order that stays the same between runs; at least one.
        seed: Seed of the run.
        batch_size: Bags of a step, over all ranks; at least 1.
        first_step: The first step.
        last_step: The one that is not taken any more.
        is_distinct: Leave out of a step what it has drawn already, in an epoch that ends in it or
            where the batch is larger than all slides.

    Yields:
        For each step ``batch_size`` pairs (g, slide_id), or fewer if ``is_distinct``.

    Raises:
        ValueError: If there is no slide or the batch is empty.
    """
    if not slide_ids or batch_size < 1:
        msg = (
            f"step_draws: needs slides and a batch of at least 1; got {len(slide_ids)} slides "
            f"and {batch_size}. Correct the recipe or the folder of bags."
        )
        raise ValueError(msg)
    known: tuple[int, list[str]] = (-1, [])
    for step in range(first_step, last_step):
        draws = []
        for g in range(step * batch_size, (step + 1) * batch_size):
            epoch, place = divmod(g, len(slide_ids))
            if known[0] != epoch:
                known = epoch, epoch_order(slide_ids, seed=seed, epoch=epoch)
            draws.append((g, known[1][place]))
        yield _first_of_each(draws) if is_distinct else draws


def _first_of_each(draws: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    first = {slide_id: g for g, slide_id in reversed(draws)}
    return [(g, slide_id) for g, slide_id in draws if first[slide_id] == g]
