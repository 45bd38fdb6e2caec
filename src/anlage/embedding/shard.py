"""One of n even parts of a catalogue, for jobs that share it without talking to each other."""

from __future__ import annotations

import heapq
import re
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from anlage.slides.catalogue import Catalogue


@dataclass(frozen=True, slots=True)
class Shard:
    """Which part.

    Attributes:
        number: From 1 to ``of``.
        of: How many parts there are.
    """

    number: int
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            msg = f"Shard: needs i/n with i from 1 to n; got {self}. Name 1/8 to 8/8 for eight."
            raise ValueError(msg)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The shard that ``i/n`` names, i from 1 to n.

        Raises:
            ValueError: If it names none.
        """
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        if found is None:
            msg = f"Shard: needs i/n with i from 1 to n; got {text!r}. Name 1/8 to 8/8 for eight."
            raise ValueError(msg)
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def shard_of(catalogue: Catalogue, shard: Shard) -> Catalogue:
    """The slides of one shard, in the catalogue's order.

    Every slide is in exactly one shard; the shards hold about the same area of tissue. Which it is
    depends on the slides' names and areas alone.

    Args:
        catalogue: All slides.
        shard: The part.
    """
    areas = catalogue.column("tissue_area_mm2").to_numpy()
    names = np.asarray(catalogue.column("slide_id").to_pylist(), dtype=object)
    return catalogue.at(np.flatnonzero(deal_evenly(areas, names, shard.of) == shard.number - 1))


def deal_evenly(
    weights: NDArray[np.float64], names: NDArray[np.object_], n_parts: int
) -> NDArray[np.int64]:
    """Number of the part, (N,) int64 from 0, of each item: the heaviest first, to the lightest.

    Args:
        weights: (N,) what is to be dealt evenly.
        names: (N,) unique, to order items of one weight by.
        n_parts: How many parts.

    Source: Graham 1969, Bounds on multiprocessing timing anomalies: longest processing time first,
        whose heaviest part is at most 4/3 of the best there is.
    """
    parts = [(0.0, part) for part in range(n_parts)]
    part_N = np.empty(len(weights), np.int64)
    for item in sorted(range(len(weights)), key=lambda i: (-weights[i], names[i])):
        load, part = parts[0]
        part_N[item] = part
        heapq.heapreplace(parts, (load + float(weights[item]), part))
    return part_N
