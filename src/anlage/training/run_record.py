"""``run.json``: what a run was made from, written before its first step and checked on resume."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from pydantic import BaseModel

from anlage.errors import CheckpointError
from anlage.files import write_json_whole
from anlage.provenance import git_commit, machine, versions
from anlage.slides.catalogue import Catalogue

LOGGER = logging.getLogger(__name__)
FORMAT = "run/1"
DATA = {"catalogue": "slides", "bags": "bags"}  # fingerprints in a record, and of what
FREE = ("engine.", "accumulate")  # what a run takes, not what it learns
MADE_WITH = ("versions", "machine", "ranks")
IMPORTED = (
    "holds an imported run, which begins no steps of its own. Name another folder, and set "
    "init.run to this one."
)
MOST_LISTED_SLIDES = 100_000  # beyond, the catalogue's fingerprint stands for them all


def run_record(config: BaseModel, slides: Catalogue, *, n_ranks: int = 1) -> dict[str, Any]:
    """Everything a run depends on, as JSON.

    Args:
        config: The resolved recipe.
        slides: The slides it trains on.
        n_ranks: Processes that share each step.

    Returns:
        Format, configuration, the catalogue's fingerprint, how many slides there are and, up to
        100,000, the fingerprint of each, the patients and how many slides count as a patient of
        their own, versions, commit and machine.
    """
    ids, patients = slides.column("slide_id"), slides.column("patient_id")
    listed = {}
    if len(slides) <= MOST_LISTED_SLIDES:
        hashes = slides.column("fingerprint").to_pylist()
        listed = dict(zip(ids.to_pylist(), hashes, strict=True))
    splits = pc.unique(slides.column("split")).to_pylist()
    of_slides = {
        "catalogue": slides.fingerprint,
        "n_slides": len(slides),
        "slides": listed,
        "patients": sorted(pc.unique(patients).to_pylist()),
        "n_without_patient": pc.sum(pc.equal(ids, patients)).as_py() or 0,
        "splits": sorted({split or "" for split in splits}),
    }
    return record_of(config, of_slides, n_ranks=n_ranks)


def record_of(config: BaseModel, data: Mapping[str, Any], *, n_ranks: int) -> dict[str, Any]:
    """A run's record: its recipe, what is told of its data, and what it was made with.

    Args:
        config: The resolved recipe.
        data: What it learns from, as JSON; a fingerprint under ``catalogue`` or ``bags``.
        n_ranks: Processes that share each step.
    """
    return {
        "format": FORMAT,
        "config": config.model_dump(mode="json"),
        **data,
        "versions": versions(),
        "commit": git_commit(),
        "machine": machine(),
        "ranks": n_ranks,
    }


def write_record(run_dir: Path, record: Mapping[str, Any]) -> None:
    """Write ``run.json``."""
    write_json_whole(run_dir / "run.json", record)


def read_record(run_dir: Path) -> dict[str, Any] | None:
    """Read ``run.json``; None if the folder has no run.

    Raises:
        CheckpointError: If the file is not a record of this version.
    """
    path = run_dir / "run.json"
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(path, f"is not JSON: {error}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise CheckpointError(path, f"needs format {FORMAT!r}. Was it written by another version?")
    return record


def refuse_existing_run(run_dir: Path) -> None:
    """Refuse a folder that holds a run, before anything in it is touched.

    Raises:
        CheckpointError: If there is a ``run.json``, or what ``anlage import-run`` wrote.
    """
    if (run_dir / "run.json").exists():
        message = "holds a run already. Add --resume to go on with it, or name another folder."
        raise CheckpointError(run_dir, message)
    if any((run_dir / "checkpoints").glob("step-*.json")):
        raise CheckpointError(run_dir, IMPORTED)


def has_begun(run_dir: Path) -> bool:
    """Whether a run did a step or saved a checkpoint, whole or damaged, so that it is bound."""
    metrics = run_dir / "metrics.jsonl"
    return any((run_dir / "checkpoints").glob("step-*")) or (
        metrics.exists() and metrics.stat().st_size > 0
    )


def compare_records(
    run_dir: Path,
    *,
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    free: tuple[str, ...] = FREE,
) -> None:
    """Refuse to resume a run with another recipe or other slides, naming what differs.

    Args:
        run_dir: The run's folder.
        old: Its record.
        new: What would go on with it.
        free: Beginnings of the recipe's keys that may differ.

    Raises:
        CheckpointError: If the configuration or the data differs, or it is an imported run, or one
            of another stage.
    """
    if old.get("format") != FORMAT:
        raise CheckpointError(run_dir, IMPORTED)
    if old.get("stage") != new.get("stage"):
        msg = "holds a run of another stage. Name the folder of such a run."
        raise CheckpointError(run_dir, msg)
    before, now = _flat(old["config"]), _flat(new["config"])
    different = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
    keys = [key for key in different if not key.startswith(free)]
    for key in sorted(set(different) - set(keys)):
        told = "%s goes on with %s=%r; it was %r: numbers may differ in their last bits"
        LOGGER.info(told, run_dir, key, now.get(key), before.get(key))
    if keys:
        changes = "; ".join(f"{k} was {before.get(k)!r}, is now {now.get(k)!r}" for k in keys)
        raise CheckpointError(
            run_dir, f"needs the recipe it began with; got {changes}. Start a new run folder."
        )
    for name, what in DATA.items():
        if old.get(name) != new.get(name):
            where = "catalogue has" if name == "catalogue" else "folder of bags has"
            msg = f"needs the {what} it began with; the {where} changed. Start a new run folder, "
            raise CheckpointError(run_dir, f"{msg}or restore the {where.removesuffix(' has')}.")
    for name in MADE_WITH:
        if old[name] != new[name]:
            told = "%s began with %s %s; now %s: numbers may differ in their last bits"
            LOGGER.warning(told, run_dir, name, old[name], new[name])


def resumed_record(old: Mapping[str, Any], new: Mapping[str, Any], *, step: int) -> dict[str, Any]:
    """The record of a run that goes on, naming what has changed since it began.

    Args:
        old: Record in the checkpoint that it goes on from.
        new: Record of the same run, made now.
        step: Finished steps.

    Returns:
        ``old``; with an entry of its versions, commit and machine in ``resumed`` if they are not
        those of the steps before.
    """
    last = old.get("resumed", [old])[-1]
    made_with = {name: new[name] for name in (*MADE_WITH, "commit")}
    if all(last[name] == value for name, value in made_with.items()):
        return dict(old)
    return {**old, "resumed": [*old.get("resumed", []), {"step": step, **made_with}]}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves.update(_flat(value, f"{prefix}{key}."))
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves
