"""One line of the page's head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["good", "bad", "care", "plain"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One line: whether it is good news, bad news, a reason for care, or a plain fact."""

    kind: Kind
    text: str
