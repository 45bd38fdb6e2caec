"""Random numbers as a pure function of what they are for: (seed, g, purpose, item)."""

from __future__ import annotations

import threading
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

_LOCAL = threading.local()  # a generator is made once a thread: making one costs ten draws


class Purpose(IntEnum):
    """What the numbers decide; two purposes never share numbers. Values must not change."""

    TILE = 0
    VIEWS = 1
    MASK = 2


def uniforms(n: int, *, seed: int, g: int, purpose: Purpose, item: int = 0) -> NDArray[np.float64]:
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
    philox: np.random.Philox | None = getattr(_LOCAL, "philox", None)
    if philox is None:
        philox = _LOCAL.philox = np.random.Philox(key=0)
        _LOCAL.state = philox.state
    state = _LOCAL.state
    state["state"]["key"][:] = (seed, g)
    state["state"]["counter"][:] = (0, 0, item, purpose)
    philox.state = state
    words: NDArray[np.uint64] = philox.random_raw(n) >> np.uint64(11)
    return words.astype(np.float64) * 2.0**-53
