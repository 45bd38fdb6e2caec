"""The folder of this user's machine for what can be made again: indexes and staged slides."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

CACHE = "ANLAGE_CACHE"


def cache_folder(name: str) -> Path:
    """A folder of the cache; it need not exist yet.

    ``ANLAGE_CACHE`` moves the cache; else it is ``anlage`` in the folder that the system has for
    caches (``XDG_CACHE_HOME``, or ``~/.cache``).

    Args:
        name: What it holds: "indexes", "staged".
    """
    named = os.environ.get(CACHE)
    if named:
        return Path(named).expanduser() / name
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "anlage" / name


def key_of(*parts: str) -> str:
    """A file name of 40 characters that stands for these texts and no others."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40]
