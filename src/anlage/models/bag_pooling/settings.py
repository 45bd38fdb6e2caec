"""What every pooling refuses of its settings, in one wording."""

from __future__ import annotations


def refuse_sizes(who: str, **sizes: int) -> None:
    """Refuse a size below 1.

    Raises:
        ValueError: Naming the sizes.
    """
    if min(sizes.values()) < 1:
        given = ", ".join(f"{name}={size}" for name, size in sizes.items())
        msg = f"{who}: needs sizes of 1 or more; got {given}. Give whole positive numbers."
        raise ValueError(msg)


def refuse_dropout(who: str, *dropouts: float) -> None:
    """Refuse a share that is not in [0, 1).

    Raises:
        ValueError: Naming the shares.
    """
    if not all(0 <= dropout < 1 for dropout in dropouts):
        msg = f"{who}: needs dropouts in [0, 1); got {dropouts}. 0 switches it off."
        raise ValueError(msg)
