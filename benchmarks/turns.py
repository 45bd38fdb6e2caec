"""Sides of a benchmark that take turns: medians of the rounds after one that is thrown away."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rate:
    """What one side does.

    Attributes:
        per_s: Units per second of wall time, median over the rounds.
        cpu_ms: Milliseconds of this process's CPU time per unit, median: of use where the machine
            does other things as well.
    """

    per_s: float
    cpu_ms: float


def take_turns(
    sides: Mapping[str, tuple[Callable[[], Any], int]], *, rounds: int
) -> dict[str, Rate]:
    """Run each side once in every round.

    Args:
        sides: What to run, and how many units (tiles) it does, by name.
        rounds: That count, after a first one that does not.
    """
    walls: dict[str, list[float]] = {name: [] for name in sides}
    cpus: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(rounds + 1):
        for name, (run, n_units) in sides.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            if round_:
                walls[name].append((time.perf_counter() - wall) / n_units)
                cpus[name].append((time.process_time() - cpu) / n_units)
    return {
        name: Rate(1 / statistics.median(walls[name]), 1e3 * statistics.median(cpus[name]))
        for name in sides
    }
