"""Index of real slides with tissue masks: one worker, two workers, the threads of one process.

Every turn indexes the same slides into a new folder, from the start of its processes to the table
on disk. All sides take turns in every round; the first round is thrown away (the files come into
the page cache); figures are medians of the others. All sides must give the same catalogue.

Usage, in the repository, with the folder that holds ``data/`` beside it:
    uv run benchmarks/index.py [SLIDES ...] [--shared ../shared] [--rounds 5] [--workers 2]
        [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from anlage.slides.indexing.index import index_slides


def main() -> None:
    """Measure all sides, print a table and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("slides", nargs="*", help="files, folders or globs")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--rounds", type=int, default=5, help="measured, after one that is not")
    parser.add_argument("--workers", type=int, default=2, help="of the second side")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    logging.getLogger("anlage").setLevel(logging.CRITICAL)  # the refused are named every time
    slides = given.slides or [str(given.shared / "data" / "slides")]
    sides: dict[str, int | None] = {
        "1 worker": 1,
        f"{given.workers} workers": given.workers,
        "threads of one process": None,
    }
    turns = measure(slides, sides, n_rounds=given.rounds)
    figures = summary(turns, one="1 worker")
    print(f"{figures['n_slides']} files examined, {figures['n_accepted']} accepted")
    print("| side | seconds | slides/s | over one worker |\n| --- | --- | --- | --- |")
    for side, got in figures["sides"].items():
        print(f"| {side} | {got['s']:.2f} | {got['slides_per_s']:.1f} | {got['speed_up']:.2f} |")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def measure(
    slides: list[str], sides: dict[str, int | None], *, n_rounds: int
) -> dict[str, list[dict[str, Any]]]:
    """Seconds, slides and fingerprint of every turn but those of the first round."""
    turns: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for number in range(n_rounds + 1):
        for side, workers in sides.items():
            with tempfile.TemporaryDirectory() as folder:
                started = time.perf_counter()
                result = index_slides(slides, Path(folder) / "slides.parquet", workers=workers)
                seconds = time.perf_counter() - started
                if result.catalogue is None:
                    msg = f"no slide of {slides} can be used"
                    raise SystemExit(msg)
                turn = {
                    "s": seconds,
                    "n_slides": result.n_read,
                    "n_accepted": result.n_accepted,
                    "fingerprint": result.catalogue.fingerprint,
                }
                if number:
                    turns[side].append(turn)
    return turns


def summary(turns: dict[str, list[dict[str, Any]]], *, one: str) -> dict[str, Any]:
    """Medians, and how much faster than one worker, round by round."""
    first = turns[one][0]
    same = {turn["fingerprint"] for side in turns.values() for turn in side}
    if len(same) != 1:
        msg = "the sides made different catalogues"
        raise SystemExit(msg)
    sides = {}
    for side, done in turns.items():
        ratios = [alone["s"] / turn["s"] for alone, turn in zip(turns[one], done, strict=True)]
        seconds = statistics.median(turn["s"] for turn in done)
        sides[side] = {
            "s": seconds,
            "slides_per_s": first["n_slides"] / seconds,
            "speed_up": statistics.median(ratios),
            "every_s": [turn["s"] for turn in done],
        }
    return {
        "n_slides": first["n_slides"],
        "n_accepted": first["n_accepted"],
        "n_cores": os.cpu_count(),
        "sides": sides,
    }


if __name__ == "__main__":
    main()
