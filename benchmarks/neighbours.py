"""Nearest neighbours and the kNN probe, against the bare matrix product of the same size.

Our sides start from raw embeddings: ``nearest`` checks and normalises them, searches and ranks in
float64; ``knn_probe`` centres as well, and votes. The baselines (``knn_matmul.py`` in the folder
given) start from rows of length 1: ``product`` throws the similarities away, ``two_stage`` and
``topk`` keep the k best, each by torch's and by NumPy's BLAS in the block that suits it best, of
those tried; ``faiss`` takes part if it is installed. Before anything is timed, our neighbours are
compared with float64 ones, and those of the baseline.

Usage, in the repository:
    uv run --group test benchmarks/neighbours.py [--baselines ../shared/baselines] [--bank 100000]
        [--queries 7000] [--width 1024] [--k 20] [--rounds 5] [--threads 2] [--topk] [--json FILE]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor
from turns import Rate, take_turns

from anlage.probes.neighbours.knn import knn_probe
from anlage.probes.neighbours.nearest import nearest

BLOCKS = (256, 512, 1024)
BLAS = ("torch", "numpy")
N_CHECKED = 200
SMALLEST_GAP = 1e-7  # neighbours whose similarities differ by less may swap
Sides = dict[str, tuple[Callable[[], Any], int]]


def baseline_of(folder: Path) -> tuple[ModuleType, bool]:
    """The baseline's module, and whether faiss is there."""
    has_faiss = importlib.util.find_spec("faiss") is not None
    if not has_faiss:
        sys.modules["faiss"] = ModuleType("faiss")  # imported by the baseline, not called by us
    sys.path.insert(0, str(folder))
    return importlib.import_module("knn_matmul"), has_faiss


def check(query_QD: Tensor, bank_ND: Tensor, *, k: int) -> dict[str, float]:
    """Compare with a full float64 sort; refuse a neighbour that is not one.

    Raises:
        SystemExit: If one of ours is less similar than the k-th best by more than rounding.
    """
    value = query_QD[:N_CHECKED].double() @ bank_ND.double().T
    exact = value.topk(k, dim=1)
    index, similarity = nearest(query_QD[:N_CHECKED], bank_ND, k=k)
    ours = value.gather(1, torch.from_numpy(index))
    worst = float((exact.values - ours).abs().max())
    if worst > SMALLEST_GAP or np.abs(similarity - ours.numpy()).max() > SMALLEST_GAP:
        msg = f"similarities differ from float64 ones by {worst}"
        raise SystemExit(msg)
    same = (exact.indices[:, :, None] == torch.from_numpy(index)[:, None, :]).any(2)
    return {"largest_difference": worst, "same_neighbours": same.double().mean().item()}


def best_blocks(baseline: ModuleType, query_QD: Tensor, bank_ND: Tensor) -> dict[str, int]:
    """For each BLAS, the block whose product is fastest."""
    best = {}
    for blas in BLAS:
        seconds = {}
        for block in BLOCKS:
            part = query_QD[: max(BLOCKS)]
            baseline.product(part[:block], bank_ND, block=block, blas=blas)
            started = time.perf_counter()
            baseline.product(part, bank_ND, block=block, blas=blas)
            seconds[block] = time.perf_counter() - started
        best[blas] = min(seconds, key=seconds.__getitem__)
    return best


def sides_of(given: argparse.Namespace, blocks: dict[str, int], data: dict[str, Any]) -> Sides:
    """What takes turns, by name."""
    baseline, query, bank = data["baseline"], data["query"], data["bank"]
    raw_query, raw_bank, label = data["raw_query"], data["raw_bank"], data["label"]
    runs: dict[str, Callable[[], Any]] = {
        "knn_probe": partial(knn_probe, raw_bank, label, raw_query, k=given.k),
        "nearest": partial(nearest, raw_query, raw_bank, k=given.k),
    }
    for blas, block in blocks.items():
        runs[f"product {blas}"] = partial(baseline.product, query, bank, block=block, blas=blas)
        for select in ("two_stage", "topk") if given.topk else ("two_stage",):
            runs[f"{select} {blas}"] = partial(
                baseline.nearest, query, bank, k=given.k, block=block, select=select, blas=blas
            )
    if data["has_faiss"]:
        runs["faiss"] = partial(baseline.nearest_faiss, query, bank, k=given.k)
    return {name: (run, given.queries) for name, run in runs.items()}


def arguments() -> argparse.Namespace:
    """What was given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--baselines", type=Path, default=Path("../shared/baselines"))
    sizes = {"bank": 100_000, "queries": 7000, "width": 1024, "k": 20, "rounds": 5}
    for name, default in {**sizes, "threads": os.cpu_count() or 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--topk", action="store_true", help="also torch.topk over whole rows")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def report(given: argparse.Namespace, rates: dict[str, Rate], facts: dict[str, Any]) -> None:
    """Print the table and write the figures."""
    products = {name: rate.per_s for name, rate in rates.items() if name.startswith("product")}
    limit = max(products.values())
    print(f"{given.queries} queries, {given.bank} x {given.width}, k = {given.k}: {facts}")
    print("| side | queries/s | time over the faster product |\n| --- | --- | --- |")
    for name, rate in rates.items():
        print(f"| {name} | {rate.per_s:.0f} | {limit / rate.per_s:.3f} |")
    if given.json:
        sizes = {name: value for name, value in vars(given).items() if isinstance(value, int)}
        over = {name: limit / rate.per_s for name, rate in rates.items()}
        per_s = {name: rate.per_s for name, rate in rates.items()}
        figures = {**sizes, **facts, "queries_per_s": per_s, "time_over_product": over}
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Check, measure and report."""
    given = arguments()
    torch.set_num_threads(given.threads)
    baseline, has_faiss = baseline_of(given.baselines)
    if has_faiss:
        baseline.faiss.omp_set_num_threads(given.threads)
    else:
        print("faiss is not installed and takes no part")
    with threadpool_limits(given.threads, user_api="blas"):
        bank = baseline.make_vectors(given.bank, given.width, seed=0)
        query = baseline.make_vectors(given.queries, given.width, seed=1)
        facts: dict[str, Any] = check(query, bank, k=given.k)
        blocks = best_blocks(baseline, query, bank)
        facts |= {f"block_{blas}": block for blas, block in blocks.items()}
        length = torch.rand(given.bank, 1, generator=torch.Generator().manual_seed(2)) + 0.5
        data = {
            "baseline": baseline,
            "has_faiss": has_faiss,
            "query": query,
            "bank": bank,
            "raw_query": 3 * query + 0.01,
            "raw_bank": bank * length + 0.01,
            "label": np.arange(given.bank) % 9,
        }
        rates = take_turns(sides_of(given, blocks, data), rounds=given.rounds)
    report(given, rates, facts)


if __name__ == "__main__":
    main()
