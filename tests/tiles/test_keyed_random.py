from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anlage.tiles.keyed_random import CHUNK, FEW_SAMPLES, Purpose, uniforms, uniforms_of, words_of

WORDS = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize(("seed", "g"), [(0, 0), (7, 12), (2**64 - 1, 2**40), (3, 2**63)])
def test_equals_a_fresh_numpy_generator(seed: int, g: int) -> None:
    key = np.array([seed, g], np.uint64)
    counter = np.array([0, 0, 5, Purpose.MASK], np.uint64)
    expected = np.random.Generator(np.random.Philox(key=key, counter=counter)).random(11)
    drawn = uniforms(11, seed=seed, g=g, purpose=Purpose.MASK, item=5)
    np.testing.assert_array_equal(drawn, expected)


def test_a_longer_call_begins_with_the_shorter_one() -> None:
    short = uniforms(3, seed=1, g=2, purpose=Purpose.TILE)
    np.testing.assert_array_equal(uniforms(9, seed=1, g=2, purpose=Purpose.TILE)[:3], short)


def test_every_part_of_the_key_matters() -> None:
    keys = [(s, g, p, i) for s in (0, 1) for g in (0, 1) for p in Purpose for i in (0, 1)]
    drawn = {uniforms(1, seed=s, g=g, purpose=p, item=i)[0] for s, g, p, i in keys}
    assert len(drawn) == len(keys)


def test_threads_do_not_disturb_each_other() -> None:
    def draw(g: int) -> list[float]:
        return uniforms(5, seed=9, g=g, purpose=Purpose.VIEWS).tolist()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(draw, range(500))) == [draw(g) for g in range(500)]


def test_numbers_are_uniform() -> None:
    drawn = np.concatenate([uniforms(4, seed=3, g=g, purpose=Purpose.TILE) for g in range(5000)])
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts = np.histogram(drawn, bins=20, range=(0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 43.8  # chi-square, 19 degrees, p = 0.001


def test_the_stream_is_pinned() -> None:
    """Resumed and published runs rest on these numbers; they never change."""
    drawn = uniforms(3, seed=42, g=1234, purpose=Purpose.TILE)
    assert drawn.tolist() == [0.853508500917522, 0.20861529777006138, 0.7639338250123869]


@settings(max_examples=200, deadline=None)
@given(
    n=st.integers(1, 13),
    seed=WORDS,
    keys=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=9),
    copies=st.sampled_from([1, FEW_SAMPLES]),
    purpose=st.sampled_from(Purpose),
)
def test_many_samples_at_once_equal_one_by_one(
    n: int, seed: int, keys: list[tuple[int, int]], copies: int, purpose: Purpose
) -> None:
    keys = keys * copies
    g_N, item_N = (np.array(column, np.uint64) for column in zip(*keys, strict=True))
    at_once = uniforms_of(n, seed=seed, g_N=g_N, purpose=purpose, item_N=item_N)
    one_by_one = [uniforms(n, seed=seed, g=g, purpose=purpose, item=item) for g, item in keys]
    np.testing.assert_array_equal(at_once, one_by_one)


def test_words_equal_numpys_raw_ones() -> None:
    key = np.array([2**64 - 1, 5], np.uint64)
    counter = np.array([0, 0, 8, Purpose.LANE], np.uint64)
    expected = np.random.Philox(key=key, counter=counter).random_raw(6)
    for n in (1, FEW_SAMPLES):
        words = words_of(6, seed=2**64 - 1, g_N=[5] * n, purpose=Purpose.LANE, item_N=8)
        np.testing.assert_array_equal(words, [expected] * n)


@pytest.mark.parametrize("n", [1, 9])
def test_samples_beyond_a_chunk_equal_one_by_one(n: int) -> None:
    g_N = np.arange(2 * CHUNK + 3)
    at_once = uniforms_of(n, seed=3, g_N=g_N, purpose=Purpose.REGION)
    assert at_once.shape == (len(g_N), n)
    for g in (0, CHUNK // 3, CHUNK - 1, CHUNK, 2 * CHUNK + 2):
        alone = uniforms(n, seed=3, g=g, purpose=Purpose.REGION)
        np.testing.assert_array_equal(at_once[g], alone)


def test_no_samples_give_no_numbers() -> None:
    assert uniforms_of(3, seed=0, g_N=[], purpose=Purpose.TILE).shape == (0, 3)
