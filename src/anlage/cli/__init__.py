"""The command line: parse arguments, call one function, print its result.

Nothing heavy is imported before a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import logging
import os
import sys

from anlage.cli import (  # each adds its commands to the application
    demo,
    machine,
    masks,
    slides,
    training,
)
from anlage.cli.application import FILE_ONLY, Exit, app

__all__ = ["app", "demo", "machine", "main", "masks", "slides", "training"]


def main() -> None:
    """Run the command line; an error of ours becomes one line and an exit code."""
    # Waiting threads sleep instead of spinning: beside another busy program a training step on two
    # cores took 1.6 s instead of 8.7 s. Read by OpenMP when torch is imported, so set before it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from anlage.errors import AnlageError, RecipeError

    try:
        app(standalone_mode=True)
    except RecipeError as error:
        _fail(error, Exit.WRONG_USAGE)
    except (AnlageError, OSError) as error:
        _fail(error, Exit.FAILED)
    except SystemExit as end:
        if isinstance(getattr(end.__context__, "__cause__", None), KeyboardInterrupt):
            print("interrupted; run it again to go on", file=sys.stderr)
        raise  # with 130, into which typer has turned the interrupt


def _fail(error: Exception, code: Exit) -> None:
    logging.getLogger(FILE_ONLY).error("%s: %s", type(error).__name__, error)
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    sys.exit(code)
