"""Find rows by name among millions: a sorted order and a binary search, no Python object a row."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


class SortedIds:
    """The rows of a column of names, by name.

    Costs the names themselves and four bytes a row.

    Attributes:
        names: The column, one array.
    """

    def __init__(self, names: pa.ChunkedArray) -> None:
        self.names = names.combine_chunks() if isinstance(names, pa.ChunkedArray) else names
        order = pc.sort_indices(self.names).to_numpy(zero_copy_only=False)
        self._order: NDArray[np.uint32] = order.astype(np.uint32)

    def find(self, name: str) -> int | None:
        """The row of a name; None if there is none."""
        low, high = 0, len(self._order)
        while low < high:  # Arrow orders bytes, Python code points: in UTF-8 that is the same
            middle = (low + high) // 2
            if self._name(middle) < name:
                low = middle + 1
            else:
                high = middle
        return int(self._order[low]) if low < len(self._order) and self._name(low) == name else None

    def first_duplicate(self) -> str | None:
        """A name that stands in more than one row; None if all differ."""
        in_order = self.names.take(pa.array(self._order))
        twice = pc.index(pc.equal(in_order[1:], in_order[:-1]), value=True).as_py()
        return None if twice < 0 else str(in_order[twice].as_py())

    def _name(self, place: int) -> str:
        return str(self.names[int(self._order[place])].as_py())
