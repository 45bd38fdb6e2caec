"""The command line in this process: a new one takes seconds to import what is here already."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest

from anlage.cli import main


class Run(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


Anlage = Callable[..., Run]


@contextmanager
def command_line(patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Anlage]:
    """Gives a function that runs ``anlage``; the log is as before afterwards."""
    log = logging.getLogger("anlage")
    handlers, level = log.handlers, log.level

    def run(*arguments: object) -> Run:
        patch.setattr(sys, "argv", ["anlage", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        told = capsys.readouterr()
        for handler in set(log.handlers) - set(handlers):
            handler.close()  # a file of its own
        log.handlers = list(handlers)
        return Run(int(end.value.code or 0), told.out, told.err)

    yield run
    log.handlers, log.level = handlers, level
