"""The cost of a run on many machines, in words."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil

from anlage.training.plan_cost import RunCost, StageCost


def cost_lines(cost: RunCost) -> tuple[str, ...]:
    """What a run asks of machines, storage, loaders, network and memory, a line each.

    Args:
        cost: From ``cost_of``.

    Returns:
        Lines for the terminal.
    """
    plan, cluster = cost.plan, cost.cluster
    told = [
        f"on {cluster.gpus} GPUs in {cluster.machines} machines: {_days(cost.hours)} by the clock, "
        f"if {plan.mfu:.0%} MFU is reached (--mfu)",
        f"parts: {cost.part_size} tiles at a time on each GPU (--set accumulate={cost.parts})",
    ]
    if cluster.n_slides is not None:
        archive = cluster.n_slides * cluster.slide_gb * 1e9
        told.append(
            f"slides: {cluster.n_slides:,} of {cluster.slide_gb:g} GB; "
            f"{plan.tiles / cluster.n_slides:,.0f} tiles of each; {_size(cost.bytes_read)} read in "
            f"all, {cost.bytes_read / archive:.1%} of their {_size(archive)}"
        )
    for number, stage in enumerate(cost.stages):
        told += _lines_of_stage(stage, cost, "last stage, " if number else "")
    return tuple(told)


def _lines_of_stage(stage: StageCost, cost: RunCost, name: str) -> Iterator[str]:
    cluster, reading, rate = cost.cluster, stage.reading, stage.tiles_per_s
    step_s = cost.plan.batch_size / rate
    yield f"{name}speed: {rate:,.0f} tiles/s, a step in {_seconds(step_s)}"
    yield (
        f"{name}storage: {_size(rate * reading.n_bytes)}/s in {rate * reading.requests:,.0f} reads "
        f"a second; {_size(reading.n_bytes)} and {reading.requests:.1f} reads a tile, carried over "
        "from 93 kB and 3.1 of 256 px at 0.5 µm over HTTP (docs/benchmarks.md)"
    )
    threads = ceil(rate / cluster.machines / reading.tiles_per_s)
    source = (
        "as given"
        if reading.is_measured
        else "carried over from docs/benchmarks.md; give yours: --cluster loader_rate=R"
    )
    yield (
        f"{name}loader: {threads} threads, a core each, on every machine; one reads "
        f"{reading.tiles_per_s:,.0f} tiles/s ({source})"
    )
    for kind, network in stage.network.items():
        took_s = network.total / (cluster.network_gbit * 1e9 / 8)
        told = (
            f"{_size(network.total)} a step leave each machine (weights {_size(network.gathered)}, "
            f"gradients {_size(network.reduced)}): {_seconds(took_s)} at {cluster.network_gbit:g} "
            f"Gbit/s, {took_s / step_s:.0%} of the step if nothing hides it"
        )
        yield f"{name}network, {kind}: {told if network.total else 'nothing leaves a machine'}"
    for kind, memory in stage.memory.items():
        full = stage.recomputed[kind]
        yield (
            f"{name}memory, {kind}: about {_size(memory.total)} on each GPU: networks "
            f"{_size(memory.networks)}, views {_size(memory.views)}, kept for backward "
            f"{_size(memory.activations)}, prototype scores {_size(memory.scores)}; with "
            f"engine.recompute=full {_size(full.total)}"
        )


def _size(n_bytes: float) -> str:
    for unit, size in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= size:
            return f"{n_bytes / size:.3g} {unit}"
    return f"{n_bytes / 1e3:.3g} kB" if n_bytes else "0"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def _days(hours: float) -> str:
    return f"{hours / 24:,.1f} days" if hours >= 48 else f"{hours:,.1f} hours"
