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
        A copy; whole paths are cut to their last part, since folders tell names as well.
    """
    public: dict[str, Any] = {}
    for key, value in provenance.items():
        if key in NAMES and isinstance(value, Mapping | list | tuple):
            public[f"n_{key}"] = len(value)
        else:
            public[key] = _in_public(value)
    return public


def _in_public(value: Any) -> Any:  # noqa: ANN401 - whatever a provenance holds
    if isinstance(value, Mapping):
        return without_names(value)
    if isinstance(value, list | tuple):
        return [_in_public(each) for each in value]
    if isinstance(value, str) and Path(value).is_absolute():
        return Path(value).name
    return value
