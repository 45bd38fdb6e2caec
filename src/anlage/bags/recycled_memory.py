"""Memory of batches that is used again once nobody holds the batch any more."""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch import Tensor

MOST_TOO_LARGE = 2


class RecycledMemory:
    """Tensors on memory that was filled before, where there is some.

    To fill 64 MB that the system gives anew takes 16 to 32 ms of a core (a large block goes back to
    the system each time it is let go), to fill it again 9 ms. Memory is used again only when no
    tensor, view or gradient is left that needs it: each holds the array that it lies in.
    """

    def __init__(self) -> None:
        self._arrays = [np.empty(0, np.float32)]  # held by nobody else
        self._n_free = self._references()[0]

    def empty(self, n_rows: int, width: int) -> Tensor:
        """A float32 tensor (n_rows, width) of any content, on the CPU; of one thread at a time."""
        size = n_rows * width
        counts = self._references()
        is_free = [count <= self._n_free for count in counts]
        free = [array for array, holds in zip(self._arrays, is_free, strict=True) if holds]
        fitting = [array for array in free if size <= array.size <= MOST_TOO_LARGE * size]
        if fitting:
            array = min(fitting, key=len)
        else:
            pairs = zip(self._arrays, is_free, strict=True)
            self._arrays = [array for array, is_unused in pairs if not is_unused]
            array = np.empty(size, np.float32)  # numpy asks for huge pages
            self._arrays.append(array)
        return torch.from_numpy(array[:size]).view(n_rows, width)

    def _references(self) -> list[int]:
        """References to each array, those by which this asks among them."""
        return [sys.getrefcount(array) for array in self._arrays]
