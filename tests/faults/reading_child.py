"""Slides that may end the process that reads them, read in one that may be ended.

Run as a script it reads the files it is given and prints a line of JSON for each.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LIMIT_S = 240  # for all files of a call; they take a few seconds where nothing else runs


@dataclass(frozen=True)
class Outcome:
    """What came of one file.

    Attributes:
        path: The file.
        error: Class of the exception; "" if every pixel was read.
        message: The exception's.
        reader: Which one opened it; "" if none did.
    """

    path: str
    error: str
    message: str
    reader: str


def outcomes(paths: Sequence[Path]) -> list[Outcome]:
    """Open each file and read all of it, in a process of its own.

    Raises:
        AssertionError: If that process hung or was ended; it names the file.
    """
    command = [sys.executable, __file__, *map(str, paths)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        output, end = done.stdout, f"ended with {done.returncode}: {done.stderr[-2000:]}"
    except subprocess.TimeoutExpired as expired:
        output, end = (expired.stdout or b"").decode(), f"hung for {LIMIT_S} s"
    found = [Outcome(**json.loads(line)) for line in output.splitlines()]
    if len(found) < len(paths):
        msg = f"reading {paths[len(found)]} {end}"
        raise AssertionError(msg)
    return found


def _outcome(path: str) -> Outcome:
    from anlage.slides.reader import open_slide

    reader = ""
    try:
        with open_slide(path) as slide:
            reader = slide.reader
            for i, level in enumerate(slide.levels):
                width, height = min(level.width, 2000), min(level.height, 2000)
                slide.read_region(0, 0, width, height, level=i)
                slide.read_region(slide.size.width - 90, slide.size.height - 90, 99, 99, level=i)
            for name in slide.associated:
                slide.read_associated(name)
            slide.resolution  # noqa: B018 - it must not raise
    except Exception as error:  # noqa: BLE001 - which one is what is asked
        kind = "SlideError" if _is_slide_error(error) else type(error).__name__
        return Outcome(path, kind, str(error), reader)
    return Outcome(path, "", "", reader)


def _is_slide_error(error: Exception) -> bool:
    from anlage.errors import SlideError

    return isinstance(error, SlideError)


if __name__ == "__main__":
    for path in sys.argv[1:]:
        sys.stdout.write(json.dumps(vars(_outcome(path))) + "\n")
        sys.stdout.flush()
