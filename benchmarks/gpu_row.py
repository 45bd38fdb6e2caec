"""Add what `anlage bench train --json` told to the table of a page of figures."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HEADING = "## Pretraining on GPUs"
INTRODUCTION = """
`benchmarks/gpu.sh MODEL`: 2 views of 224 px and 8 of 98 px, 65,536 prototypes, bf16, compiled
blocks; tiles/s and MFU at the median step. Parts are of other steps, the device waited for between
them (see `docs/how_to/measure_training.md`): augment / teacher / student / heads / optimiser, ms.

| model | device | date | torch | tiles from | batch | tiles/s | MFU | data wait | memory | parts |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""
PARTS = ("augment", "teacher", "student", "heads", "optimiser")


def row_of(model: str, told: dict[str, Any], *, date: str) -> str:
    """One row of the table."""

    def share(value: float | None) -> str:
        return "-" if value is None else f"{value:.1%}"

    cells = (
        model,
        told["device"] if told["n_ranks"] == 1 else f"{told['n_ranks']} x {told['device']}",
        date,
        told["versions"]["torch"],
        told["settings"]["source"],
        str(told["batch_size"]),
        f"{told['tiles_per_s']:,.4g}",
        share(told["mfu"]),
        share(told["data_wait_share"]),
        f"{told['memory']['n_bytes'] / 1e9:.3g} GB",
        " / ".join(f"{1e3 * told['parts'][name]:.3g}" for name in PARTS),
    )
    return f"| {' | '.join(cells)} |"


def with_row(page: str, row: str) -> str:
    """The page with the row below the last of its table; with the section, if it had none."""
    if HEADING not in page:
        page = f"{page.rstrip()}\n\n{HEADING}\n{INTRODUCTION}"
    before, rest = page.split(HEADING, 1)
    section, *others = rest.split("\n## ", 1)
    after = "".join(f"\n\n## {other}" for other in others)
    return f"{before}{HEADING}{section.rstrip()}\n{row}\n" + after.removeprefix("\n")


if __name__ == "__main__":
    _, name, report, into = sys.argv
    target = Path(into)
    made = row_of(name, json.loads(Path(report).read_text()), date=f"{datetime.now(UTC):%Y-%m-%d}")
    target.write_text(with_row(target.read_text(), made))
    print(made)
