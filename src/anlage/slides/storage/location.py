"""Where a slide is: a local path, or the URL of an object in a bucket or behind HTTP."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from urllib.parse import unquote

REMOTE_SCHEMES = ("s3://", "gs://", "az://", "https://", "http://")


def is_remote(location: str) -> bool:
    """Whether a location is a URL that is read over the network."""
    return location.lower().startswith(REMOTE_SCHEMES)


def absolute(location: str | Path) -> str:
    """What means the same in every folder: a local path made absolute, a URL as it is."""
    text = str(location)
    return text if is_remote(text) else str(Path(text).absolute())


def file_name(location: str) -> str:
    """The last component: "a b.svs"; of a web address decoded, and without its query."""
    if location.lower().startswith(("https://", "http://")):
        path = location.partition("://")[2].partition("/")[2]
        location = unquote(path.partition("?")[0].partition("#")[0])
    return PurePosixPath(location).name


def suffix_of(location: str) -> str:
    """The ending of the file's name in lower case, with its dot: ".svs"; empty without one."""
    return PurePosixPath(file_name(location)).suffix.lower()
