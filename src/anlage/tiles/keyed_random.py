"""Random numbers as a pure function of what they are for: (seed, g, purpose, item).

Shape suffixes: N samples, K blocks of four words a sample.
"""

from __future__ import annotations

import threading
from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

Words = NDArray[np.uint64]
Floats = NDArray[np.float64]

_LOCAL = threading.local()  # a generator is made once a thread: making one costs ten draws

ROUNDS = 10
MULTIPLIERS = (np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157))
KEY_STEPS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
LOW_HALF, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
FEW_SAMPLES, MANY_BLOCKS = 64, 16  # where numpy's own loop, one sample a call, is quicker
CHUNK = 8192  # blocks at a time: the arrays of a round then stay in the second-level cache


class Purpose(IntEnum):
    """What the numbers decide; two purposes never share numbers. Values must not change."""

    TILE = 0
    VIEWS = 1
    MASK = 2
    REGION = 3
    WINDOW = 4
    LANE = 5
    LIST = 6
    BAG_ORDER = 7
    BAG_TILES = 8


def uniforms(n: int, *, seed: int, g: int, purpose: Purpose, item: int = 0) -> Floats:
    """``n`` uniform numbers that depend on nothing but the arguments.

    Philox 4x64-10 with key (seed, g) and counter (0, 0, item, purpose): any g is reached in
    constant time, so no generator state has to be saved. The numbers are made from the raw words,
    whose stream numpy keeps stable between versions.

    Args:
        n: How many numbers; a longer call begins with the numbers of a shorter one.
        seed: Seed of the run, 0 to 2**64 - 1.
        g: Global index of the sample, 0 to 2**64 - 1.
        purpose: What the numbers decide.
        item: Which part of the sample (an attempt, a view), 0 to 2**64 - 1.

    Returns:
        (n,) float64 in [0, 1).
    """
    return _as_uniforms(_numpys_words(n, key=(seed, g), counter=(0, 0, item, purpose)))


def uniforms_of(
    n: int, *, seed: int, g_N: ArrayLike, purpose: Purpose, item_N: ArrayLike = 0
) -> Floats:
    """The numbers of many samples at once: row i is ``uniforms`` of ``g_N[i]`` and ``item_N[i]``.

    Args:
        n: Numbers a sample.
        seed: Seed of the run, 0 to 2**64 - 1.
        g_N: (N,) whole numbers from 0, of any integer type.
        purpose: What the numbers decide.
        item_N: (N,) whole numbers from 0, or one for all.

    Returns:
        (N, n) float64 in [0, 1).
    """
    return _as_uniforms(words_of(n, seed=seed, g_N=g_N, purpose=purpose, item_N=item_N))


def words_of(
    n: int, *, seed: int, g_N: ArrayLike, purpose: Purpose, item_N: ArrayLike = 0
) -> Words:
    """The raw words behind ``uniforms_of``, (N, n) uint64."""
    key_N, item_N = np.broadcast_arrays(
        np.asarray(g_N).astype(np.uint64, copy=False).ravel(),
        np.asarray(item_N).astype(np.uint64, copy=False),
    )
    n_blocks = -(-n // 4)
    if len(key_N) < FEW_SAMPLES or n_blocks > MANY_BLOCKS:
        words_Nn = np.empty((len(key_N), n), dtype=np.uint64)
        for row, (g, item) in enumerate(zip(key_N.tolist(), item_N.tolist(), strict=True)):
            words_Nn[row] = _numpys_words(n, key=(seed, g), counter=(0, 0, item, purpose))
        return words_Nn
    words_NK4 = np.empty((len(key_N), n_blocks, 4), dtype=np.uint64)
    block_K = np.arange(1, n_blocks + 1, dtype=np.uint64)  # numpy counts up before each block
    n_samples = max(1, CHUNK // max(1, n_blocks))
    for first in range(0, len(key_N), n_samples):
        part = slice(first, first + n_samples)
        block = np.tile(block_K, len(key_N[part]))
        item, g = (np.repeat(of_N[part], n_blocks) for of_N in (item_N, key_N))
        words = _philox(block, item, purpose=purpose, key=(seed, g))
        words_NK4[part] = words.reshape(-1, n_blocks, 4)
    return words_NK4.reshape(len(key_N), 4 * n_blocks)[:, :n]


def _numpys_words(n: int, *, key: tuple[int, int], counter: tuple[int, int, int, int]) -> Words:
    """``n`` words of one key: numpy's compiled loop, quick for many words of few samples."""
    philox: np.random.Philox | None = getattr(_LOCAL, "philox", None)
    if philox is None:
        philox = _LOCAL.philox = np.random.Philox(key=0)
        _LOCAL.state = philox.state
    state = _LOCAL.state
    state["state"]["key"][:] = key
    state["state"]["counter"][:] = counter
    philox.state = state
    return philox.random_raw(n)


def _philox(block: Words, item: Words, *, purpose: int, key: tuple[int, Words]) -> Words:
    """Philox 4x64-10 of the counters (block, 0, item, purpose), (N, 4) uint64.

    Source: Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3, section 4.
    """
    w0, w1, w2, w3 = block, np.zeros_like(block), item, np.full_like(block, purpose)
    k0, k1 = key[0], key[1].copy()
    half = np.empty((4, len(block)), dtype=np.uint64)
    for number in range(ROUNDS):
        if number:
            k0 = (k0 + KEY_STEPS[0]) % 2**64
            k1 += np.uint64(KEY_STEPS[1])
        high0, low0 = _multiply(w0, MULTIPLIERS[0], half)
        high1, low1 = _multiply(w2, MULTIPLIERS[1], half)
        high1 ^= w1
        high1 ^= np.uint64(k0)
        high0 ^= w3
        high0 ^= k1
        w0, w1, w2, w3 = high1, low1, high0, low0
    return np.stack((w0, w1, w2, w3), axis=1)


def _multiply(word: Words, by: np.uint64, half: Words) -> tuple[Words, Words]:
    """Upper and lower word of the 128-bit product, by halves; ``half`` is (4, N) scratch."""
    by_low, by_high = by & LOW_HALF, by >> HALF
    low, high, middle, rest = half
    np.bitwise_and(word, LOW_HALF, out=low)
    np.right_shift(word, HALF, out=high)
    np.multiply(low, by_low, out=middle)
    np.right_shift(middle, HALF, out=middle)
    np.multiply(low, by_high, out=low)
    middle += low  # at most (2**32 - 1) * 2**32: no overflow
    np.multiply(high, by_low, out=rest)
    np.bitwise_and(middle, LOW_HALF, out=low)
    rest += low
    upper = high * by_high
    np.right_shift(middle, HALF, out=middle)
    upper += middle
    np.right_shift(rest, HALF, out=rest)
    upper += rest
    return upper, word * by


def _as_uniforms(words: Words) -> Floats:
    """The upper 53 bits as float64 in [0, 1)."""
    return np.asarray((words >> np.uint64(11)).astype(np.float64) * 2.0**-53)
