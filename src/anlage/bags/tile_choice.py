"""Which tiles of a bag a draw takes, and in which order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anlage.tiles.keyed_random import Purpose, words_of


@dataclass(frozen=True, kw_only=True, slots=True)
class TileChoice:
    """Takes some tiles of a bag, by the seed and the number of the draw alone.

    Attributes:
        seed: Seed of the run, 0 to 2**64 - 1.
        max_tiles: Most tiles of a draw, at least 1: of a larger bag each subset of that many is as
            likely; None takes all.
        is_shuffled: Whether tiles come in random order, each order as likely. Otherwise they stay
            in the order of the bag, which a slide encoder that cuts the sequence depends on.

    Raises:
        ValueError: If ``max_tiles`` is below 1.
    """

    seed: int
    max_tiles: int | None = None
    is_shuffled: bool = False

    def __post_init__(self) -> None:
        if self.max_tiles is not None and self.max_tiles < 1:
            msg = f"TileChoice: needs max_tiles of 1 or more; got {self.max_tiles}. Correct it."
            raise ValueError(msg)

    def n_taken(self, n_tiles: int) -> int:
        """How many tiles a draw of a bag of ``n_tiles`` takes."""
        return n_tiles if self.max_tiles is None else min(n_tiles, self.max_tiles)

    def rows(self, n_tiles: int, *, g: int) -> NDArray[np.int64] | None:
        """Tiles that a draw takes, in its order.

        Args:
            n_tiles: Tiles of the bag.
            g: Global number of the draw.

        Returns:
            (n,) int64 rows of the bag, each once; None for all of them as they are.
        """
        n_taken = self.n_taken(n_tiles)
        if not self.is_shuffled and n_taken == n_tiles:
            return None
        key_L = words_of(n_tiles, seed=self.seed, g_N=[g], purpose=Purpose.BAG_TILES)[0]
        taken = np.argsort(key_L, kind="stable")[:n_taken]
        return taken if self.is_shuffled else np.sort(taken)
