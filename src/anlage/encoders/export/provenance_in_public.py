"""Provenance that may leave the house: counts in place of the names of slides and patients."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

NAMES = ("slides", "patients", "cases")


def without_names(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The same with ``n_slides``, ``n_patients`` and ``n_cases`` for the lists of their ids.

    A file name or a case number can tell who somebody is, so an export carries none. Encoders that
    this one was made from are treated alike.

    Args:
        provenance: Of an encoder.

    Returns:
        A copy; a ``source`` that is a whole path is cut to its last part.
    """
    public: dict[str, Any] = {}
    for key, value in provenance.items():
        if key in NAMES and isinstance(value, Mapping | list | tuple):
            public[f"n_{key}"] = len(value)
        elif isinstance(value, Mapping):
            public[key] = without_names(value)
        elif key == "source" and isinstance(value, str):
            public[key] = Path(value).name if Path(value).is_absolute() else value
        else:
            public[key] = value
    return public
