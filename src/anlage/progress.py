"""Progress of long work: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LOGGER = logging.getLogger(__name__)
CONSOLE = Console(stderr=True)  # the one terminal that bars and log lines share
PLAIN_LINE_EVERY_S = 10.0
WHOLE = 1e-6  # units


class Meter:
    """Counts finished units and shows their rate and the time left.

    Attributes:
        title: What is being done, in a word or two.
        unit: What is counted (``slides``, ``steps``).
        total: How many there will be.
    """

    def __init__(self, title: str, *, total: int, unit: str, done: int = 0) -> None:
        self.title, self.unit, self.total = title, unit, total
        self._done, self._done_at_start = float(done), done
        self._started = self._last_line = time.monotonic()
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def advance(self, count: float = 1, note: str = "") -> None:
        """Count ``count`` more units as done, with an optional short note (a loss, a name).

        Parts of a unit count for the rate and the time left; what is shown are whole ones.
        """
        self._done = _without_dust(self._done + count)
        rate = self._rate()
        if self._bar is not None:
            shown = f"{rate:.2f} {self.unit}/s"
            self._bar.update(self._task, completed=self._done, rate=shown, note=note)
        now = time.monotonic()
        if now - self._last_line >= PLAIN_LINE_EVERY_S or self._done == self.total:
            self._last_line = now
            left = (self.total - self._done) / rate if rate > 0 else float("inf")
            LOGGER.info(
                "%s: %d/%d %s, %.2f/s, %.0f s left %s",
                *(self.title, self._done, self.total, self.unit, rate, left, note),
            )

    def _rate(self) -> float:
        elapsed = time.monotonic() - self._started
        return (self._done - self._done_at_start) / elapsed if elapsed > 0 else 0.0

    def show_on(self, bar: Progress) -> None:
        """Draw this meter as one line of a live progress display."""
        self._bar = bar
        self._task = bar.add_task(
            self.title, total=self.total, completed=self._done_at_start, rate="", note=""
        )


def _without_dust(count: float) -> float:
    """A sum of parts that is a whole number but for rounding, as that number."""
    return round(count) if abs(count - round(count)) < WHOLE else count


@contextmanager
def meter(
    title: str, *, total: int, unit: str, done: int = 0, is_shown: bool = True
) -> Iterator[Meter]:
    """Show the progress of a loop, whose body calls ``advance`` on what this gives.

    Args:
        title: What is being done.
        total: Units in all.
        unit: Name of a unit, plural.
        done: Units finished by an earlier run; they do not count towards the rate.
        is_shown: Whether there is a bar; else plain lines in the log alone.

    Yields:
        The meter to advance.
    """
    counting = Meter(title, total=total, unit=unit, done=done)
    if not (is_shown and CONSOLE.is_terminal):
        yield counting
        return
    columns = (
        TextColumn("{task.description:<16}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=CONSOLE) as bar:
        counting.show_on(bar)
        yield counting
