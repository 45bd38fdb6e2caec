"""Whether every rank sees at once what another one wrote to the folder of a run, and how fast."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from anlage.distributed import Ranks
from anlage.doctor.findings import Finding, named
from anlage.files import replace_whole, write_text_whole

LOOK_AGAIN_S = 0.05
SLOW_S = 1.0  # a checkpoint that is seen later than this can be missed by a resume


def shared_folder(
    ranks: Ranks, run: Path, *, patience_s: float, n_bytes: int = 1 << 26
) -> Iterator[Finding]:
    """Write files beside each other, replace them, and read those of the next rank.

    Every rank writes whole (beside, fsync, rename), as checkpoints are written. The files lie in a
    folder of their own, which is removed; where the run's folder is not there yet, beside it.

    Args:
        ranks: All processes.
        run: Folder of the run, which need not exist.
        patience_s: Longest that a rank looks for a file of another.
        n_bytes: Size of the file that is written to measure the rate, by each rank.

    Yields:
        A finding each for what is seen and for the rate; the same on every rank.
    """
    there = next(folder for folder in (run, *run.resolve().parents) if folder.is_dir())
    home, token = ranks.objects((there, uuid.uuid4().hex[:8]))[0]
    folder = home / f".anlage-doctor-{token}"
    try:
        refused = _refused(ranks, folder)
        if refused:
            yield Finding("shared folder", "seen by all", "broken", f"{home}: {refused}")
            return
        yield _seen(ranks, folder, patience_s=patience_s)
        yield _write_rate(ranks, folder, n_bytes=n_bytes)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _refused(ranks: Ranks, folder: Path) -> str:
    """Why a rank cannot write here; empty if all can. Makes the folder."""
    reason = ""
    try:
        if folder.parent.is_dir():
            folder.mkdir(exist_ok=True)
            write_text_whole(_file(folder, ranks.rank), "before")
        else:
            reason = "is not there"
    except OSError as error:
        reason = f"cannot be written: {error.strerror}"
    told = ranks.objects(reason)
    return "; ".join(f"on {named([rank])} it {why}" for rank, why in enumerate(told) if why)


def _seen(ranks: Ranks, folder: Path, *, patience_s: float) -> Finding:
    """Whether each rank sees the next one's file, and then the one that replaces it."""
    other = (ranks.rank + 1) % ranks.world_size
    waited = _wait_for(_file(folder, other), "before", patience_s)
    ranks.objects(None)  # nobody replaces a file that is still looked for
    write_text_whole(_file(folder, ranks.rank), "after")
    ranks.objects(None)
    replaced = _wait_for(_file(folder, other), "after", patience_s) if waited is not None else None
    told = ranks.objects((waited, replaced))
    for what, index in (("a file of another rank", 0), ("that a file was replaced", 1)):
        blind = [rank for rank, both in enumerate(told) if both[index] is None]
        if blind:
            reason = (
                f"{folder.parent}: {named(blind)} did not see {what} within {patience_s:g} s. All "
                "machines must have the same shared storage there, and see renames at once"
            )
            return Finding("shared folder", "seen by all", "broken", reason)
    slowest = max(seconds for both in told for seconds in both if seconds is not None)
    if slowest > SLOW_S:
        reason = f"{folder.parent}: files of others are seen after {slowest:.1f} s; lower its cache"
        return Finding("shared folder", "seen by all", "missing", f"{reason} (NFS: actimeo=1)")
    seen = "written, replaced and read" if ranks.is_alone else "every rank sees the others' files"
    return Finding("shared folder", "seen by all", "ok", f"{folder.parent}: {seen}")


def _wait_for(file: Path, text: str, patience_s: float) -> float | None:
    """Seconds until the file has this text; None if it never does."""
    began = time.perf_counter()
    while True:
        try:
            if file.read_text(encoding="utf-8") == text:
                return time.perf_counter() - began
        except OSError:
            pass  # not there yet, or in the middle of being replaced
        if time.perf_counter() - began > patience_s:
            return None
        time.sleep(LOOK_AGAIN_S)


def _write_rate(ranks: Ranks, folder: Path, *, n_bytes: int) -> Finding:
    """Megabytes a second that all ranks write together, fsync and rename included."""
    block = os.urandom(n_bytes)
    ranks.objects(None)
    began = time.perf_counter()
    with replace_whole(folder / f"large-{ranks.rank}") as beside:
        beside.write_bytes(block)
    slowest = max(ranks.objects(time.perf_counter() - began))
    ranks.objects(None)  # the folder is removed after this
    rate = ranks.world_size * n_bytes / slowest / 1e6
    by = "one process" if ranks.is_alone else f"{ranks.world_size} ranks at once"
    return Finding("shared folder", "writing", "ok", f"{rate:,.0f} MB/s by {by}, fsync included")


def _file(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}"
