"""What probes refuse among their numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping


def refuse_numbers(
    who: str,
    *,
    whole: Mapping[str, float] | None = None,
    positive: Mapping[str, float] | None = None,
    not_negative: Mapping[str, float] | None = None,
) -> None:
    """Refuse settings out of range.

    Args:
        who: Function that asks, for the message.
        whole: Settings by name that are counts, >= 1.
        positive: Those that are finite and > 0.
        not_negative: Those that are finite and >= 0.

    Raises:
        ValueError: If one is not.
    """
    rules: tuple[tuple[Mapping[str, float] | None, str, Callable[[float], bool]], ...] = (
        (whole, "a whole number, 1 or more", lambda n: hasattr(n, "__index__") and n >= 1),
        (positive, "finite and > 0", lambda value: value > 0),
        (not_negative, "finite and >= 0", lambda value: value >= 0),
    )
    for settings, rule, holds in rules:
        for name, value in (settings or {}).items():
            if not (math.isfinite(value) and holds(value)):
                msg = (
                    f"{who}: {name} needs to be {rule}; got {value}. "
                    "Leave it out for the published value."
                )
                raise ValueError(msg)
