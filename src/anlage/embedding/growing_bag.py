"""A bag while its embeddings arrive, in any order, and the slide that it is of.

Shape suffixes: L tiles of the slide, K tiles at a time, D embedding width, N patch tokens of a
tile, E their width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anlage.bags.store import FLOAT16_MAX
from anlage.embedding.patch_token_file import PatchTokenFile
from anlage.slides.catalogue import SlideRow

if TYPE_CHECKING:
    from anlage.embedding.bag_target import BagTarget

ROUNDS_TO_INFINITY = FLOAT16_MAX + 16  # halfway to the next number float16 would have


@dataclass(slots=True, eq=False)
class GrowingBag:
    """What one encoder says of one slide, so far.

    Attributes:
        target: The encoder, and where its bags go.
        features_LD: (L, D) float16, filled batch by batch: what the bag will hold, and all there
            is in memory of it.
        tokens: Where patch tokens go; None if nobody asked for them.
        n_embedded: Rows that are filled.
        reason: Why the slide gets no bag of this encoder; None while nothing is wrong.
        is_settled: Whether it is known what became of it.
    """

    target: BagTarget
    features_LD: NDArray[np.float16]
    tokens: PatchTokenFile | None = None
    n_embedded: int = 0
    reason: str | None = None
    is_settled: bool = False

    @property
    def is_complete(self) -> bool:
        """Whether every row is filled."""
        return self.n_embedded == len(self.features_LD)

    def put(
        self,
        rows: NDArray[np.int64],
        embedding_KD: NDArray[np.float32],
        tokens_KNE: NDArray[np.float16] | None = None,
    ) -> None:
        """Take what the encoder says of some tiles; what float16 cannot hold is a ``reason``.

        Args:
            rows: (K,) rows of the bag.
            embedding_KD: (K, D).
            tokens_KNE: (K, N, E), if they were asked for.
        """
        if self.reason is not None:
            return
        self.reason = _unstorable(rows, embedding_KD, "feature")
        if self.reason is None and tokens_KNE is not None:
            self.reason = _unstorable(rows, tokens_KNE, "patch token")
        if self.reason is not None:
            return
        self.features_LD[rows] = embedding_KD
        if self.tokens is not None and tokens_KNE is not None:
            self.tokens.put(rows, tokens_KNE)
        self.n_embedded += len(rows)

    def discard(self) -> None:
        """Leave nothing beside the bags: what tokens came so far, unless they are finished."""
        if self.tokens is not None:
            self.tokens.discard()


@dataclass(slots=True, eq=False)
class SlideJob:
    """One slide on its way to its bags.

    Attributes:
        row: The slide in the catalogue.
        corners: (L, 2) int64 tiles to embed, level-0 pixels.
        bags: The bags it lacks.
        n_read: Tiles that came to the encoders.
        n_unsettled: Bags of which is not known yet what became of them.
        shown: Share of it that the progress has been told of.
        icc_profile: What its bags say of its colour profile; set when it is read.
        reason: Why the slide is refused; None while nothing is wrong.
    """

    row: SlideRow
    corners: NDArray[np.int64]
    bags: list[GrowingBag] = field(default_factory=list)
    n_read: int = 0
    n_unsettled: int = 0
    shown: float = 0.0
    icc_profile: str = ""
    reason: str | None = None


def _unstorable(
    rows: NDArray[np.int64], values: NDArray[np.floating[Any]], what: str
) -> str | None:
    """Why a bag cannot hold these values; None if it can."""
    largest = np.abs(values).reshape(len(rows), -1).max(axis=1).astype(np.float64)
    fits = largest < ROUNDS_TO_INFINITY  # not so where it is NaN
    if fits.all():
        return None
    slot = int(np.argmin(fits))
    found = f"got {largest[slot]} in a {what} of tile {rows[slot]}"
    if np.isinf(largest[slot]) or np.isnan(largest[slot]):
        return f"needs finite embeddings; {found}. Check the weights, or use precision fp32."
    remedy = "Use an encoder that ends in a normalisation, or scale its output"
    return f"needs embeddings within float16's {FLOAT16_MAX:g}; {found}. {remedy}."
