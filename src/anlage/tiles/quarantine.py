"""Tiles that cannot be read: what is done about them, and the journal that makes it repeatable."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from anlage.errors import CheckpointError

JOURNAL = "quarantine.jsonl"  # in the run's folder


@dataclass(frozen=True, slots=True)
class ErrorPolicy:
    """What happens when a tile cannot be read.

    Attributes:
        on_error: ``resample``: the next attempt of the same g takes its place, counted; ``raise``:
            the error ends the run.
        quarantine_after: Errors after which a slide is drawn no more; None for never.
    """

    on_error: Literal["resample", "raise"] = "resample"
    quarantine_after: int | None = None

    def __post_init__(self) -> None:
        if self.quarantine_after is not None and self.quarantine_after < 1:
            msg = (
                "ErrorPolicy: needs quarantine_after of at least 1; got "
                f"{self.quarantine_after}. Leave it out to keep every slide."
            )
            raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class ReadError:
    """One tile that could not be read.

    Attributes:
        step: Step that its sample belongs to.
        g: Global index of the sample.
        attempt: Which draw of that sample it was.
        slide_id: The slide.
        error: What went wrong.
    """

    step: int
    g: int
    attempt: int
    slide_id: str
    error: str


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A slide that is drawn no more.

    Attributes:
        slide_id: The slide.
        from_step: First step that draws without it; the first of a window.
        decided_at_step: Step whose tiles reached the number of errors.
        n_errors: How many there were.
        first_error: The first of them, in the order of g.
    """

    slide_id: str
    from_step: int
    decided_at_step: int
    n_errors: int
    first_error: str


class QuarantineJournal:
    """Counts read errors by slide, decides on quarantines, and remembers both across a kill.

    Every error and every decision is a line of JSON, on disk before it takes effect. A journal
    that is opened again gives a resumed run the same draws: its quarantines hold from the same
    steps, a draw that failed before counts as failed without being tried, and nothing is counted
    or written twice. The errors of a slide are counted in the order of steps, up to the step that
    is being finished, so that no decision depends on which thread was first.

    Attributes:
        failed: Every error so far by (g, attempt), also of steps that will be done again.
        quarantined: Slides that are drawn no more, by name.
    """

    def __init__(self, path: Path | None, policy: ErrorPolicy) -> None:
        self.failed: dict[tuple[int, int], ReadError] = {}
        self.quarantined: dict[str, Quarantined] = {}
        self._limit = policy.quarantine_after
        self._path = path if self._limit is not None else None
        if self._path is not None and self._path.exists():
            self._replay(self._path)

    def note(
        self, step: int, errors: Iterable[ReadError], *, from_step: int, is_written: bool = True
    ) -> list[Quarantined]:
        """Take down the errors of a finished step, in the order of g.

        Args:
            step: The step; each must come after the one before.
            errors: Its errors.
            from_step: First step that a quarantine decided now can hold from.
            is_written: Whether it goes to the file; of several ranks one writes.

        Returns:
            The slides that reached the number of errors with this step.

        Raises:
            OSError: If the journal cannot be written.
        """
        if self._limit is None:
            return []
        found = sorted(errors, key=lambda error: (error.g, error.attempt))
        new = [error for error in found if (error.g, error.attempt) not in self.failed]
        self.failed.update({(error.g, error.attempt): error for error in new})
        decided = []
        for slide_id in dict.fromkeys(error.slide_id for error in found):
            before = [e for e in self._errors_of(slide_id) if e.step <= step]
            if len(before) >= self._limit and slide_id not in self.quarantined:
                first = before[0].error
                decided.append(Quarantined(slide_id, from_step, step, len(before), first))
        if is_written:
            self._append([*new, *decided])
        self.quarantined.update({one.slide_id: one for one in decided})
        return decided

    def _errors_of(self, slide_id: str) -> list[ReadError]:
        own = [error for error in self.failed.values() if error.slide_id == slide_id]
        return sorted(own, key=lambda error: (error.g, error.attempt))

    def _append(self, entries: list[ReadError | Quarantined]) -> None:
        if self._path is None or not entries:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(entry)) + "\n" for entry in entries)
            file.flush()
            os.fsync(file.fileno())

    def _replay(self, path: Path) -> None:
        text = path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:  # the end of a line is missing: killed while writing it
            os.truncate(path, len(whole))
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                self._take_over(json.loads(line))
            except (ValueError, TypeError) as error:
                got = line[:60].decode(errors="backslashreplace")
                raise CheckpointError(
                    path,
                    f"line {number} needs a read error or a quarantine; got {got!r}. Delete "
                    "that line to go on without it, or start a new run.",
                ) from error

    def _take_over(self, entry: dict[str, Any]) -> None:
        if "from_step" in entry:
            quarantined = Quarantined(**entry)
            self.quarantined[quarantined.slide_id] = quarantined
        else:
            error = ReadError(**entry)
            self.failed[error.g, error.attempt] = error
