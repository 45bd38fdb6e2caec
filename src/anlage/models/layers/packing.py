"""Sequences of several lengths as one matrix of tokens, so that a linear layer runs once.

Shape suffixes: T tokens of all sequences, R resolutions; B sequences of one resolution, N tokens
of each, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class SequenceShape(NamedTuple):
    """The sequences of one resolution: how many, and how long each is.

    Attributes:
        n_sequences: Images of this resolution, B.
        n_tokens: Tokens of one image, N.
    """

    n_sequences: int
    n_tokens: int

    @property
    def n_rows(self) -> int:
        """Rows these sequences take in the packed matrix."""
        return self.n_sequences * self.n_tokens


def pack(tokens_RBND: Sequence[Tensor]) -> tuple[Tensor, list[SequenceShape]]:
    """All tokens below each other, and what is needed to part them again.

    Args:
        tokens_RBND: One (B, N, D) tensor a resolution, of one width; B and N may differ.

    Returns:
        tokens_TD: (T, D), resolution by resolution, sequence by sequence.
        shapes: One shape a resolution.
    """
    shapes = [SequenceShape(tokens.shape[0], tokens.shape[1]) for tokens in tokens_RBND]
    rows = [tokens.flatten(0, 1) for tokens in tokens_RBND]
    return (rows[0] if len(rows) == 1 else torch.cat(rows)), shapes


def unpack(tokens_TD: Tensor, shapes: Sequence[SequenceShape]) -> list[Tensor]:
    """Undo ``pack`` without copying.

    Args:
        tokens_TD: (T, ...) packed rows.
        shapes: One shape a resolution, whose rows sum to T.

    Returns:
        One (B, N, ...) view a resolution.
    """
    parts = torch.split(tokens_TD, [shape.n_rows for shape in shapes])
    return [
        part.view(shape.n_sequences, shape.n_tokens, *part.shape[1:])
        for part, shape in zip(parts, shapes, strict=True)
    ]
