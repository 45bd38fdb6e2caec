"""SimpleShot, 1,000 episodes of each of 9 numbers of shots: all at once, one by one, and the limit.

``anlage`` is ``simpleshot`` as users call it, from arrays to scores, draws included. ``product`` is
the matrix product that compares test rows with the prototypes of all episodes, alone, in the same
blocks, by torch's BLAS and by NumPy's. ``loop`` is one episode after another in plain torch, from
draw to recall, some episodes of each number of shots. All sides take turns in every round; the
first round is thrown away; figures are medians of the others. Before that, episodes of ``anlage``
are compared with those of ``loop`` on the same supports.

Usage, in the repository:
    uv run benchmarks/simpleshot.py [--rounds 5] [--threads 2] [--json FILE]
"""

# Shape suffixes: N test rows, M train rows, D embedding width, C classes, E episodes, S support.

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from turns import take_turns

from anlage.probes.few_shot.episodes import BLOCK_BYTES
from anlage.probes.few_shot.simpleshot import SHOTS, simpleshot
from anlage.probes.splits.few_shot import few_shot_rows

LOOP_EPISODES = 2


def main() -> None:
    """Check, measure, print a table and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = {"train": 20_000, "test": 5_000, "width": 1024, "classes": 9, "episodes": 1000}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--shots", type=int, nargs="+", default=list(SHOTS))
    parser.add_argument("--rounds", type=int, default=5, help="measured, after one that is not")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="torch's")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    train_MD, label_M = clusters(given.train, given.classes, given.width, seed=0)
    test_ND, label_N = clusters(given.test, given.classes, given.width, seed=1)
    sides = (train_MD, label_M, test_ND, label_N)
    worst = check(sides, given.shots)
    figures = measure(sides, given)
    print(f"largest difference of a recall from the loop's: {worst:.5f}")
    print(f"mean balanced accuracy: {figures['balanced_accuracy']}")
    print("| side | episodes/s | share of the faster product |\n| --- | --- | --- |")
    for side, rate in figures["episodes_per_s"].items():
        print(f"| {side} | {rate:,.1f} | {rate / figures['limit']:.4f} |")
    if given.json:
        text = json.dumps(figures | {"largest_difference": worst}, indent=2)
        given.json.write_text(text + "\n", encoding="utf-8")


def clusters(
    n_rows: int, n_classes: int, width: int, *, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Noisy classes about centres that both sides share."""
    rng = np.random.default_rng(seed)
    centre_CD = np.random.default_rng(7).standard_normal((n_classes, width), dtype=np.float32)
    label = rng.integers(0, n_classes, n_rows)
    return centre_CD[label] + 9 * rng.standard_normal((n_rows, width), dtype=np.float32), label


def episode(train_MD: Tensor, test_ND: Tensor, label_N: Tensor, row_CS: Tensor) -> Tensor:
    """(C,) recalls of one episode, as one writes it for one."""
    support_CSD = train_MD[row_CS]
    mean_D = support_CSD.mean(dim=(0, 1))
    prototype_CD = functional.normalize(support_CSD - mean_D, dim=2).mean(dim=1)
    unit_ND = functional.normalize(test_ND - mean_D, dim=1)
    is_right_N = torch.cdist(unit_ND, prototype_CD).argmin(dim=1) == label_N
    n_classes = len(row_CS)
    right_C = torch.bincount(label_N[is_right_N], minlength=n_classes)
    return right_C / torch.bincount(label_N, minlength=n_classes)


def check(sides: tuple[NDArray[Any], ...], shots: list[int]) -> float:
    """Largest difference of a recall between simpleshot and the loop on the same supports."""
    train_MD, label_M, test_ND, label_N = sides
    got = simpleshot(*sides, shots=shots, n_episodes=LOOP_EPISODES)
    test = torch.from_numpy(test_ND), torch.from_numpy(label_N)
    worst = 0.0
    for place, k in enumerate(shots):
        row_SCK = few_shot_rows(label_M, shots=k, n_episodes=LOOP_EPISODES)
        for number in range(LOOP_EPISODES):
            row_S, _ = row_SCK.rows(number, number + 1)
            row_CS = torch.from_numpy(row_S).view(len(got.class_C), k)
            recall_C = episode(torch.from_numpy(train_MD), *test, row_CS).numpy()
            worst = max(worst, np.abs(recall_C - got.recall_KEC[place, number]).max())
    if worst > 5 * len(got.class_C) / len(test_ND):  # five near ties of a class may fall otherwise
        msg = f"recalls differ from the loop's by up to {worst}"
        raise SystemExit(msg)
    return float(worst)


def loop(sides: tuple[Tensor, ...], shots: list[int], rng: np.random.Generator) -> None:
    """Some episodes of each number of shots, drawn and scored one after another."""
    train_MD, label_M, test_ND, label_N = sides
    rows_C = [np.flatnonzero(label_M == label) for label in range(int(label_M.max()) + 1)]
    for k in shots:
        for _ in range(LOOP_EPISODES):
            row_CS = np.stack([rng.permutation(rows)[:k] for rows in rows_C])
            episode(train_MD, test_ND, label_N, torch.from_numpy(row_CS))


def product(
    factor_BD: Tensor, test_ND: Tensor, out_BN: Tensor, *, n_blocks: int, blas: str
) -> None:
    """The bare matrix product of one number of shots, thrown away."""
    for _ in range(n_blocks):
        if blas == "torch":
            torch.mm(factor_BD, test_ND.T, out=out_BN)
        else:
            np.matmul(factor_BD.numpy(), test_ND.numpy().T, out=out_BN.numpy())


def measure(sides: tuple[NDArray[Any], ...], given: argparse.Namespace) -> dict[str, Any]:
    """Median episodes per second of every side."""
    tensors = tuple(torch.from_numpy(side) for side in sides)
    n_values = max(given.classes * max(given.test, given.width), given.train)
    n_block = min(given.episodes, max(1, BLOCK_BYTES["cpu"] // (4 * n_values)))
    n_blocks = -(-given.episodes // n_block)
    factor_BD = torch.randn(n_block * given.classes, given.width)
    out_BN = torch.empty(len(factor_BD), given.test)
    rng = np.random.default_rng(0)
    scores = []

    def ours() -> None:
        scores[:] = [simpleshot(*sides, shots=given.shots, n_episodes=given.episodes)]

    def bare(blas: str) -> None:
        product(factor_BD, tensors[2], out_BN, n_blocks=n_blocks, blas=blas)

    rates = take_turns(
        {
            "anlage": (ours, given.episodes * len(given.shots)),
            "product (torch)": (lambda: bare("torch"), n_block * n_blocks),
            "product (numpy)": (lambda: bare("numpy"), n_block * n_blocks),
            "loop": (lambda: loop(tensors, given.shots, rng), LOOP_EPISODES * len(given.shots)),
        },
        rounds=given.rounds,
    )
    settings = {name: value for name, value in vars(given).items() if name != "json"}
    return settings | {
        "episodes_per_s": {name: rate.per_s for name, rate in rates.items()},
        "cpu_ms_per_episode": {name: rate.cpu_ms for name, rate in rates.items()},
        "limit": max(rate.per_s for name, rate in rates.items() if name.startswith("product")),
        "balanced_accuracy": scores[0].mean.round(4).tolist(),
    }


if __name__ == "__main__":
    main()
