"""What every objective refuses, in one wording."""

from __future__ import annotations

from torch import Tensor


def need_positive(who: str, name: str, value: float) -> None:
    """Refuse a setting that is not above zero (NaN included).

    Args:
        who: Function that asks.
        name: Name of the setting.
        value: Its value.

    Raises:
        ValueError: If it is not > 0.
    """
    if not value > 0:
        msg = f"{who}: needs {name} > 0; got {value}. Set it to a positive number."
        raise ValueError(msg)


def need_batch(who: str, embedding_BD: Tensor) -> None:
    """Refuse a batch in which no tile has a neighbour.

    Args:
        who: Function that asks.
        embedding_BD: The batch.

    Raises:
        ValueError: If it is not (B, D) with B >= 2.
    """
    if embedding_BD.ndim != 2 or embedding_BD.shape[0] < 2:
        msg = (
            f"{who}: needs a (B, D) batch with B >= 2; got shape {tuple(embedding_BD.shape)}. "
            "Gather embeddings across ranks, or raise the batch size to 2 or more."
        )
        raise ValueError(msg)
