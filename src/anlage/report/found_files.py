"""Files of a folder: found by name, opened, or named as a problem."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from anlage.encoders.bundled import CONFIG
from anlage.errors import AnlageError
from anlage.folder_replacement import whole_folder

Part = TypeVar("Part")

FOLDERS_OF_A_PATH = re.compile(r"(?<![\w.)\]])(?:[A-Za-z]:)?(?:[/\\][^\s/\\:;,'\"<>]+)*[/\\](?=\w)")


def first_file(*candidates: Path) -> Path | None:
    """The first of them that is a file."""
    return next((path for path in candidates if path.is_file()), None)


def opened(
    name: str, path: Path | None, read: Callable[[Path], Part], problems: list[str]
) -> Part | None:
    """The part, None if it is not there; a damaged one becomes a line in ``problems``."""
    if path is None:
        return None
    try:
        return read(path)
    except AnlageError as error:
        problems.append(f"{name}: {without_folders(error.message)}")
    except (OSError, ValueError) as error:
        problems.append(f"{name}: cannot be read ({type(error).__name__})")
    return None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if it holds anything else."""
    value = json.loads(path.read_text(encoding="utf-8"))
    return value if isinstance(value, dict) else {}


def stage_of(run: Path) -> str:
    """Which stage wrote a ``run.json``; ``tile`` where none is named."""
    return str(_peeked(run).get("stage", "tile"))


def network_folder(form: str, *candidates: Path) -> Path | None:
    """The first folder of a network of a format such as ``slide-encoder``.

    Args:
        form: Its name; empty for tile encoders, which is what a damaged one counts as.
        candidates: Folders to look at, in order.
    """
    for folder in candidates:
        path = whole_folder(folder) / CONFIG
        if path.is_file() and _form_of(path) == form:
            return folder
    return None


def without_folders(text: str) -> str:
    """A text with every absolute path cut to its file name, since a report travels."""
    return FOLDERS_OF_A_PATH.sub("", text)


def _form_of(config: Path) -> str:
    named = str(_peeked(config).get("format", "")).partition("/")[0]
    return named if named.startswith("slide-") else ""


def _peeked(path: Path) -> dict[str, Any]:
    """What a JSON file says, if it can be read; whoever opens it in earnest tells why not."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}
