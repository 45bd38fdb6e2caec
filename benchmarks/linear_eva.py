"""eva's linear probe: all runs of ours at once, the plain PyTorch loop, and kaiko-eva itself.

Made-up embeddings, 100,000 x 1,024 in 9 classes, 5 runs unless told otherwise. Sides take turns in
every round; the first round is thrown away; figures are medians, in microseconds of wall time per
step of one run (a round of ours does steps x runs of them at once, the others one after another):

    ours        linear_probe_eva, --threads runs at a time
    loop        eva_linear_loop.py of the folder of baselines, both ways of gathering a batch, with
                1 and --threads threads: four sides, the fastest is the one that counts
    bare        what ours cannot do without: gather and two matrix products, on as many threads
    eva         kaiko-eva's HeadModule and Trainer (eva_head_training.py), if --eva-python is given:
                fewer steps, after a warm-up; the fastest of --eva-settings is the one that counts

Before anything is timed, each run of ours is compared with the loop's weights of the same seed, and
with the same run trained alone.

Usage, in the repository, with the folder of baselines beside it:
    uv run benchmarks/linear_eva.py [--baselines ../shared/baselines] [--rounds 5] [--steps 1000]
        [--full] [--eva-python VENV/bin/python] [--json FILE]
and for the environment of eva: uv venv VENV --python 3.11, then
    uv pip install --python VENV 'kaiko-eva[vision]==0.4.5' torch==2.13.0
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anlage.probes.linear.eva import linear_probe_eva

BATCH = 256
FULL_STEPS = 12_500
Side = Callable[[], float]


def main() -> None:
    """Compare, measure, print a table and write the figures."""
    given = arguments()
    sys.path.insert(0, str(given.baselines))
    import eva_linear_loop

    n_steps = FULL_STEPS if given.full else given.steps
    train_ND, class_N = eva_linear_loop.make_embeddings(*given.shape)
    task = Task(eva_linear_loop, train_ND, class_N, n_steps=n_steps, given=given)
    figures: dict[str, Any] = {
        "shape": given.shape,
        "n_steps": n_steps,
        "n_runs": given.runs,
        "n_threads": given.threads,
        "torch": torch.__version__,
        "largest_difference": task.differences(min(n_steps, given.compared_steps)),
    }
    with EvaProcess(given, train_ND, class_N) as eva:
        seconds = take_turns(task.sides() | eva.sides(), rounds=0 if given.full else given.rounds)
    figures |= summary(seconds, n_runs=given.runs)
    print(json.dumps(figures["largest_difference"]))
    print("| side | us a step of one run | s for all 12,500 | ours is faster by |")
    print("| --- | --- | --- | --- |")
    for name, side in figures["sides"].items():
        whole, ratio = side["all_runs_s"], side["over_ours"]
        print(f"| {name} | {side['us']:.0f} | {whole:.0f} | {ratio:.2f} |")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--baselines", type=Path, default=Path("../shared/baselines"))
    parser.add_argument("--shape", type=int, nargs=3, default=(100_000, 1024, 9), metavar="N")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1000, help="of each run in a turn")
    parser.add_argument("--compared-steps", type=int, default=1000)
    parser.add_argument("--full", action="store_true", help="one turn of all 12,500 steps")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="measured, after one that is not")
    parser.add_argument("--eva-python", type=Path, help="interpreter with kaiko-eva 0.4.5")
    parser.add_argument("--eva-settings", nargs="+", default=["memory", "memory-2t", "bare"])
    parser.add_argument("--eva-steps", type=int, default=120, help="in a turn, 20 are warm-up")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


class Task:
    """The sides that run in this process; each returns seconds per step of one run."""

    def __init__(
        self,
        loop: ModuleType,
        train_ND: Tensor,
        class_N: Tensor,
        *,
        n_steps: int,
        given: argparse.Namespace,
    ) -> None:
        self.loop, self.train_ND, self.class_N = loop, train_ND, class_N
        self.n_steps, self.given, self.batches = n_steps, given, loop.batches

    def sides(self) -> dict[str, Side]:
        """All of them by name."""
        sides: dict[str, Side] = {"ours": self.ours, "bare": self.bare}
        for is_advanced in (False, True):
            for threads in sorted({1, self.given.threads}):
                gather = "advanced indexing" if is_advanced else "index_select"
                sides[f"loop, {gather}, {threads} threads"] = self.loop_side(
                    is_advanced=is_advanced, threads=threads
                )
        return sides

    def ours(self) -> float:
        """All runs at once."""
        torch.set_num_threads(self.given.threads)
        start = time.perf_counter()
        linear_probe_eva(self.train_ND, self.class_N, n_runs=self.given.runs, n_steps=self.n_steps)
        return (time.perf_counter() - start) / (self.n_steps * self.given.runs)

    def loop_side(self, *, is_advanced: bool, threads: int) -> Side:
        """One run of the baseline."""

        def run() -> float:
            torch.set_num_threads(threads)
            self.loop.batches = advanced_batches if is_advanced else self.batches
            start = time.perf_counter()
            self.train_by_loop(seed=0, n_steps=self.n_steps)
            return (time.perf_counter() - start) / self.n_steps

        return run

    def train_by_loop(self, *, seed: int, n_steps: int) -> torch.nn.Linear:
        """The baseline's layer."""
        n_classes = self.given.shape[2]
        return self.loop.train_probe(
            self.train_ND, self.class_N, n_classes=n_classes, n_steps=n_steps, seed=seed
        )

    def bare(self) -> float:
        """Gather and two products of as many steps as ours, on as many threads."""
        width, n_classes = self.train_ND.shape[1], self.given.shape[2]
        n_steps = self.n_steps * self.given.runs // self.given.threads

        def work(seed: int) -> None:
            torch.set_num_threads(1)
            rng = torch.Generator().manual_seed(seed)
            batch_BD, weight_CD = torch.empty(BATCH, width), torch.zeros(n_classes, width)
            logit_CB, gradient_CD = torch.empty(n_classes, BATCH), torch.empty(n_classes, width)
            done = 0
            while done < n_steps:
                order = torch.randperm(len(self.train_ND), generator=rng)
                for rows in order[: len(order) // BATCH * BATCH].split(BATCH)[: n_steps - done]:
                    torch.index_select(self.train_ND, 0, rows, out=batch_BD)
                    torch.mm(weight_CD, batch_BD.T, out=logit_CB)
                    torch.mm(logit_CB, batch_BD, out=gradient_CD)
                    done += 1

        start = time.perf_counter()
        with ThreadPoolExecutor(self.given.threads) as pool:
            list(pool.map(work, range(self.given.threads)))
        return (time.perf_counter() - start) / (n_steps * self.given.threads)

    def differences(self, n_steps: int) -> dict[str, Any]:
        """Largest difference of any weight from the loop's and from the run trained alone."""
        torch.set_num_threads(self.given.threads)
        settings = {"n_steps": n_steps}
        heads = linear_probe_eva(self.train_ND, self.class_N, n_runs=self.given.runs, **settings)
        from_loop, from_alone = 0.0, 0.0
        for seed, head in enumerate(heads):
            torch.set_num_threads(1)
            layer = self.train_by_loop(seed=seed, n_steps=n_steps)
            torch.set_num_threads(self.given.threads)
            alone = linear_probe_eva(self.train_ND, self.class_N, n_runs=1, seed=seed, **settings)[
                0
            ]
            from_loop = max(from_loop, (head.weight_CD - layer.weight).abs().max().item())
            from_alone = max(from_alone, (head.weight_CD - alone.weight_CD).abs().max().item())
        if max(from_loop, from_alone) > 1e-4:
            msg = f"weights differ: {from_loop} from the loop, {from_alone} from one run alone"
            raise SystemExit(msg)
        return {"after_steps": n_steps, "from_loop": from_loop, "from_run_alone": from_alone}


def advanced_batches(
    data_ND: Tensor, class_N: Tensor, *, batch: int, n_steps: int, rng: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of the baseline, gathered by advanced indexing."""
    done = 0
    while done < n_steps:
        order = torch.randperm(len(class_N), generator=rng)
        for index in order.split(batch)[: n_steps - done]:
            yield data_ND[index], class_N[index]
            done += 1


class EvaProcess:
    """kaiko-eva in its own interpreter, waiting for orders; nothing without ``--eva-python``."""

    def __init__(self, given: argparse.Namespace, train_ND: Tensor, class_N: Tensor) -> None:
        self.given, self.arrays = given, {"X": train_ND.numpy(), "y": class_N.numpy()}

    def __enter__(self) -> EvaProcess:
        if self.given.eva_python:
            self.folder = tempfile.TemporaryDirectory()
            path = Path(self.folder.name) / "embeddings.npz"
            np.savez(path, **self.arrays)
            self.errors = Path(self.folder.name, "errors.txt").open("w+", encoding="utf-8")
            script = Path(__file__).with_name("eva_head_training.py")
            self.process = subprocess.Popen(  # noqa: S603  (the interpreter that was named)
                [str(self.given.eva_python), str(script), str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                text=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self.given.eva_python:
            self.process.communicate()
            self.errors.close()
            self.folder.cleanup()

    def sides(self) -> dict[str, Side]:
        """A side a setting."""
        names = self.given.eva_settings if self.given.eva_python else []
        return {f"kaiko-eva, {name}": self.side(name) for name in names}

    def side(self, setting: str) -> Side:
        """One run of eva's own training."""
        order = {"setting": setting, "steps": self.given.eva_steps, "warm_up": 20}

        def run() -> float:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
            if not answer:
                self.errors.seek(0)
                raise SystemExit("kaiko-eva ended: " + self.errors.read()[-2000:])
            return json.loads(answer)["s"]

        return run


def take_turns(sides: dict[str, Side], *, rounds: int) -> dict[str, list[float]]:
    """Seconds of every turn; the first round does not count, unless it is the only one."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(rounds + 1):
        for name, run in sides.items():
            measured = run()
            if round_ or not rounds:
                seconds[name].append(measured)
    return seconds


def summary(seconds: dict[str, list[float]], *, n_runs: int) -> dict[str, Any]:
    """Medians, and how much faster ours is, round by round."""
    sides = {}
    for name, each in seconds.items():
        ratios = [theirs / ours for theirs, ours in zip(each, seconds["ours"], strict=True)]
        middle = statistics.median(each)
        sides[name] = {
            "us": 1e6 * middle,
            "all_runs_s": middle * FULL_STEPS * n_runs,  # extrapolated unless --full
            "over_ours": statistics.median(ratios),
            "every_us": [1e6 * one for one in each],
        }
    return {"sides": sides}


if __name__ == "__main__":
    main()
