"""The Typer application, and what its commands share: exit codes, log, refused slides."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anlage import __version__
from anlage.errors import without_secrets

if TYPE_CHECKING:
    from anlage.slides.indexing.found_slide import Refused

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # a path like s3:/b has lost a slash
MAX_SEED = 2**32 - 1
MOST_THREADS = 1024  # beyond any machine; far more than the system starts
app = typer.Typer(
    name="anlage",
    help="Train, run and judge foundation models of pathology, from slides to a report.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
FILE_ONLY = "anlage.failure"  # what ended a command, which the terminal is told by its last line


class Exit(IntEnum):
    """How a command ends."""

    DONE = 0
    FAILED = 1
    WRONG_USAGE = 2
    SOME_REFUSED = 3
    INTERRUPTED = 130


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"anlage {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    del version


def named_output(output: str) -> str:
    """The output without a last slash; an empty name (an unset variable) and odd URLs refused."""
    from anlage.slides.storage.location import is_remote

    if not output:
        msg = "needs a folder or URL; got an empty name. '.' is this folder."
        raise typer.BadParameter(msg)
    if URL.match(output) and not is_remote(output):
        msg = f"needs a folder, or a URL such as s3://BUCKET/FOLDER; got {output}."
        raise typer.BadParameter(msg)
    return output.rstrip("/") if is_remote(output) else output


def local_output(output: Path | None) -> Path | None:
    """Refuse a URL where files are written on this machine alone, rather than make a folder s3:."""
    if output is not None and URL.match(str(output)):
        msg = f"is written on this machine alone; got the URL {output}. Name a path, and copy it."
        raise typer.BadParameter(msg)
    return output


def name_refused(refused: Sequence[Refused]) -> None:
    """Print one line for each slide that was left out, with the reason."""
    for slide in refused:
        print(without_secrets(f"refused: {slide.uri}: {slide.reason}"))


def exit_by(refused: Sequence[Refused]) -> None:
    """End with the code that says that some slides were refused, if any was."""
    if refused:
        raise typer.Exit(Exit.SOME_REFUSED)


def log_to(file: Path | None) -> None:
    """Log to the terminal, and every line with its time to a file."""
    from rich.logging import RichHandler

    from anlage.progress import CONSOLE

    root = logging.getLogger("anlage")
    root.setLevel(logging.INFO)
    shown = RichHandler(console=CONSOLE, show_path=False, show_time=False, show_level=False)
    said_otherwise = {FILE_ONLY, "anlage.progress"} if CONSOLE.is_terminal else {FILE_ONLY}
    shown.addFilter(lambda record: record.name not in said_otherwise)  # the bar, the last line
    shown.addFilter(_hide_secrets)
    root.handlers = [shown]
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        written = logging.FileHandler(file, encoding="utf-8")
        written.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        written.addFilter(_hide_secrets)
        root.addHandler(written)


def _hide_secrets(record: logging.LogRecord) -> bool:
    record.msg, record.args = without_secrets(record.getMessage()), None
    return True
