"""``embedding.json``: by what the bags of a folder were made, over all the runs that made them."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anlage.files import write_json_whole

LOGGER = logging.getLogger(__name__)
RECORD = "embedding.json"
OF_A_RUN = (
    *("started", "seconds", "wait_s", "batch_size", "device", "done", "empty", "n_tiles"),
    *("catalogue_fingerprint", "versions", "commit", "machine"),
)


def write_embed_record(output: Path, record: Mapping[str, Any], *, had_work: bool) -> None:
    """Write a run's record, joined to that of the runs before it; keep that if nothing was to do.

    ``done``, ``empty`` and ``n_tiles`` then tell of all of them, ``skipped`` of the bags that no
    record tells of, and ``runs`` of each one: its slides, catalogue, commit and machine.

    Args:
        output: Folder of the bags.
        record: What this run did, and by what.
        had_work: Whether a slide lacked its bag when the run began.
    """
    record = {**record, "runs": [{name: record[name] for name in OF_A_RUN}]}
    earlier = _earlier(output / RECORD, record)
    if earlier is None:
        write_json_whole(output / RECORD, record)
    elif had_work or earlier["catalogue_fingerprint"] != record["catalogue_fingerprint"]:
        write_json_whole(output / RECORD, _joined(earlier, record))


def _earlier(path: Path, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record there, if it is of this encoder and grid; None if there is none to go on from."""
    if not path.exists():
        return None
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        LOGGER.warning("%s: is not JSON and is written anew: %s", path, error)
        return None
    must_equal = ("format", "encoder_fingerprint", "tiles", "colour")
    if not isinstance(earlier, dict) or any(earlier.get(k) != record[k] for k in must_equal):
        return None
    return earlier if earlier.keys() >= record.keys() else None


def _joined(earlier: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    standing = set(record["skipped"])  # a bag deleted since is no longer theirs
    kept = {name: [s for s in earlier[name] if s in standing] for name in ("done", "empty")}
    return {
        **record,
        **{name: [*slides, *record[name]] for name, slides in kept.items()},
        "skipped": sorted(standing.difference(*kept.values())),
        "n_tiles": earlier["n_tiles"] + record["n_tiles"],
        "runs": [*earlier["runs"], *record["runs"]],
    }
