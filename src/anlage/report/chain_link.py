"""A link of the chain of provenance: a stored thing, and how it fits to what comes before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MOST_CHECKED = 64
SHORT = 12
NAMED = 4


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing compared just now: True holds, False is broken, None could not be told."""

    holds: bool | None
    text: str


@dataclass(frozen=True, kw_only=True)
class Link:
    """One stored thing of the chain.

    Attributes:
        title: What it is.
        short: The beginning of its hash; empty if it has none of its own.
        full: The whole hash.
        facts: Name and value of what made it.
        checks: How it fits to what comes before it.
        hashes: Names and hashes of the many things in it.
    """

    title: str
    short: str = ""
    full: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    checks: tuple[Check, ...] = ()
    hashes: tuple[tuple[str, str], ...] = ()


def all_are(what: str, exceptions: Sequence[str], n: int) -> Check:
    """Whether all of ``n`` things are so; not known of none."""
    n_good = n - len(exceptions)
    named = f"; not so: {some_of(exceptions)}" if exceptions else ""
    return Check(holds=not exceptions if n else None, text=f"{n_good} of {n} {what}{named}")


def some_of(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def short_commit(commit: str | None) -> str:
    """A commit as one tells it to a reader."""
    if not commit:
        return "not a checkout"
    head, plus, changed = commit.partition("+")
    return head[:SHORT] + (" with uncommitted changes" if plus and changed else "")
