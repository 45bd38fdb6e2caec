"""The command line: parse arguments, call one function, print its result.

Nothing heavy is imported before a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import errno
import logging
import os
import sys

from anlage.cli import (  # each adds its commands to the application
    bags,
    curation,
    demo,
    embed_tiles,
    embedding,
    encoders,
    explain,
    explain_slide,
    export,
    finetune,
    machine,
    masks,
    slide_training,
    slides,
    training,
)
from anlage.cli.application import FILE_ONLY, Exit, app

__all__ = [
    "app",
    "bags",
    "curation",
    "demo",
    "embed_tiles",
    "embedding",
    "encoders",
    "explain",
    "explain_slide",
    "export",
    "finetune",
    "machine",
    "main",
    "masks",
    "slide_training",
    "slides",
    "training",
]


REMEDIES = {
    errno.ENOSPC: "Make room on the disk that is written to, and run it again.",
    errno.EDQUOT: "Your quota is used up. Make room, and run it again.",
    errno.EFBIG: "A limit on the size of files (ulimit -f) is reached. Raise it, and run it again.",
    errno.EROFS: "Name an output in a folder that can be written.",
    errno.EACCES: "Your account may not use it. Ask for the right to, or name another place.",
    errno.EEXIST: "It is a file where a folder is needed. Name another output.",
    errno.EISDIR: "It is a folder where a file is needed. Name another output.",
    errno.ENOTDIR: "A part of it is a file where a folder is needed. Name another output.",
    errno.EMFILE: "Raise the limit of open files (ulimit -n).",
}


def main() -> None:
    """Run the command line; an error of ours becomes one line and an exit code."""
    # Waiting threads sleep instead of spinning: beside another busy program a training step on two
    # cores took 1.6 s instead of 8.7 s. Read by OpenMP when torch is imported, so set before it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from anlage.errors import AnlageError, RecipeError

    # a command that ends before it begins to log; its last line would else be printed twice
    logging.getLogger("anlage").addHandler(logging.NullHandler())
    try:
        app(standalone_mode=True)
    except RecipeError as error:
        _fail(error, Exit.WRONG_USAGE)
    except AnlageError as error:
        _fail(error, Exit.FAILED)
    except OSError as error:
        _fail(error, Exit.FAILED, remedy=REMEDIES.get(error.errno or 0, ""))
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        _fail(error, Exit.FAILED, remedy="Ask for smaller batches or tiles, and run it again.")
    except SystemExit as end:
        if isinstance(getattr(end.__context__, "__cause__", None), KeyboardInterrupt):
            print("interrupted; run it again to go on", file=sys.stderr)
        raise  # with 130, into which typer has turned the interrupt


def _is_out_of_memory(error: Exception) -> bool:
    """Whether it is; torch has a class for GPUs, and says it of the CPU in words alone."""
    is_named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return is_named or "can't allocate memory" in str(error)


def _fail(error: Exception, code: Exit, *, remedy: str = "") -> None:
    told = f"{type(error).__name__}: {error}{remedy and '. '}{remedy}"
    logging.getLogger(FILE_ONLY).error("%s", told)
    print(told, file=sys.stderr)
    sys.exit(code)
