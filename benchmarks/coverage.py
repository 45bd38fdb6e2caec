"""Coverage study: do intervals hold the truth as often as they say, and do tests keep their level?

Simulates studies of patients with several rows each, unequal numbers of them, and effects of their
own, so that rows of a patient are alike. The truth is known: in closed form, or from a population
of 100,000 patients. For each number of patients: how often the 95 % interval of each method holds
the truth, and how wide it is; the bootstrap over rows stands there to show how it lies. Then: how
often each test between two equal models, and between two that differ, says that they differ.

Usage, in the repository:
    uv run benchmarks/coverage.py [--studies 300] [--resamples 400] [--workers 2] [--json FILE]
        [--only SCENARIO ...] [--patients 5 10 ...]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from simulated_studies import (
    SCENARIOS,
    TESTS,
    Array,
    Scenario,
    Study,
    truth_of,
    whole_study,
)

from anlage.probes.metrics.metric import Statistic
from anlage.probes.metrics.ranking import AUROC
from anlage.probes.uncertainty.bca import BootstrapDistribution
from anlage.probes.uncertainty.bootstrap import (
    Groups,
    Resampling,
    bootstrap_distribution,
    groups_of,
    t_interval,
)
from anlage.probes.uncertainty.delong import delong_interval, delong_test
from anlage.probes.uncertainty.permutation import paired_permutation
from anlage.probes.uncertainty.resampling import (
    leave_out_weights,
    resample_weights,
    strata_of_classes,
)

CONFIDENCE = 0.95


STRATA: dict[str, Callable[[Array], Array]] = {
    "strata": strata_of_classes,
    "free": lambda count_GC: np.zeros(len(count_GC), dtype=np.int64),
}


@dataclass
class Tally:
    """How often intervals held the truth, how wide they were, and what happened on the way."""

    held: int = 0
    width: float = 0.0
    short: float = 0.0
    alone: float = 0.0
    n: int = 0

    def add(
        self, ends: tuple[float, float], truth: float, short: float = 0, alone: float = 0
    ) -> None:
        """Count one interval."""
        self.held += ends[0] <= truth <= ends[1]
        self.width += ends[1] - ends[0]
        self.short += short
        self.alone += alone
        self.n += 1

    def figures(self) -> dict[str, float]:
        """Shares and means over the studies."""
        return {
            "coverage": self.held / self.n,
            "width": self.width / self.n,
            "short_of_a_class": self.short / self.n,
            "alone": self.alone / self.n,
            "n": self.n,
        }


def statistic_of(scenario: Scenario, study: Study, code_N: Array, n_groups: int) -> Statistic:
    """The metric, or its difference, as a function of the patients' weights."""
    truth = study.truth_N
    score_a = scenario.metric.over_groups((truth, study.a_N), code_N, n_groups)
    if not scenario.is_paired:
        return score_a
    score_b = scenario.metric.over_groups((truth, study.b_N), code_N, n_groups)
    return lambda weight_RG: score_a(weight_RG) - score_b(weight_RG)


def distribution_of(
    statistic: Statistic, groups: Groups, stratum_G: Array, leave_out_G: Array, *, n: int, seed: int
) -> tuple[BootstrapDistribution, float]:
    """Resampled values, and the share of the resamples short of a class."""
    weights = resample_weights(groups.n_groups, n_resamples=n, seed=seed, stratum_G=stratum_G)
    weight_RG = np.concatenate(list(weights))
    value_R = statistic(weight_RG)
    assert groups.count_GC is not None
    short = float(((weight_RG @ groups.count_GC) == 0).any(axis=1).mean())
    found = BootstrapDistribution(
        value_R=value_R[np.isfinite(value_R)],
        estimate=float(statistic(np.ones((1, groups.n_groups)))[0]),
        leave_out_G=leave_out_G,
        stratum_G=stratum_G,
    )
    return found, short


def cover(
    name: str, n_patients: int, n_studies: int, *, n_resamples: int, seed: int
) -> dict[str, Any]:
    """Coverage and mean width of every method in one scenario."""
    scenario, truth = SCENARIOS[name], truth_of(name)
    generator = np.random.default_rng([seed, n_patients])
    tallies: dict[str, Tally] = defaultdict(Tally)
    for number in range(n_studies):
        study = whole_study(scenario, generator, n_patients, scenario.gap)
        groups = groups_of("cover", study.group_N, study.truth_N, has_classes=True)
        statistic = statistic_of(scenario, study, groups.code_N, groups.n_groups)
        leave_out_G = np.concatenate(
            [statistic(w) for w in leave_out_weights(np.arange(groups.n_groups))]
        )
        bounds = (-1.0, 1.0) if scenario.is_paired else (0.0, 1.0)
        for rule, stratum_of in STRATA.items():
            stratum_G = stratum_of(groups.count_GC)
            found, short = distribution_of(
                statistic, groups, stratum_G, leave_out_G, n=n_resamples, seed=number
            )
            alone = float((np.unique(stratum_G, return_counts=True)[1] == 1).sum())
            confidence = found.widened(CONFIDENCE)
            percentile = found.percentile_ends(confidence)
            tallies[f"percentile, {rule}"].add(percentile, truth, short, alone)
            tallies[f"bca, {rule}"].add(
                found.bca_ends(confidence) or percentile, truth, short, alone
            )
        estimate = found.estimate
        tallies["t"].add(t_interval(estimate, leave_out_G, CONFIDENCE, bounds), truth)
        for method, ends in _others(scenario, study, n_resamples=n_resamples // 4, seed=number):
            tallies[method].add(ends, truth)
    return {method: tally.figures() for method, tally in tallies.items()}


def _others(
    scenario: Scenario, study: Study, *, n_resamples: int, seed: int
) -> Iterator[tuple[str, tuple[float, float]]]:
    """The bootstrap over rows, and DeLong's interval of an AUROC."""
    n = len(study.truth_N)
    statistic = statistic_of(scenario, study, np.arange(n), n)
    weights = resample_weights(n, n_resamples=n_resamples, seed=seed)
    value_R = np.concatenate([statistic(w) for w in weights])
    low, high = np.nanquantile(value_R, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    yield "rows, percentile", (float(low), float(high))
    if scenario.metric is AUROC:
        has = [len(np.unique(study.group_N[study.truth_N == c])) for c in (0, 1)]
        if min(has) < 2:
            return
        if scenario.is_paired:
            test = delong_test(study.truth_N, study.a_N, study.b_N, study.group_N)
            yield "delong", (test.low, test.high)
        else:
            found = delong_interval(study.truth_N, study.a_N, study.group_N)
            yield "delong", (found.low, found.high)
            yield "delong, logit", (found.logit_low, found.logit_high)


def reject(
    name: str, n_patients: int, n_studies: int, *, n_resamples: int, seed: int, is_equal: bool
) -> dict[str, Any]:
    """Share of the studies in which each test says at 5 % that two models differ."""
    scenario = TESTS[name]
    generator = np.random.default_rng([seed, n_patients, int(is_equal)])
    said: dict[str, list[bool]] = defaultdict(list)
    for number in range(n_studies):
        gap = 0.0 if is_equal else scenario.gap
        study = whole_study(scenario, generator, n_patients, gap)
        for test, p_value in _p_values(scenario, study, n_resamples=n_resamples, seed=number):
            said[test].append(p_value <= 1 - CONFIDENCE)
    return {test: {"rejected": float(np.mean(x)), "n": len(x)} for test, x in said.items()}


def _p_values(
    scenario: Scenario, study: Study, *, n_resamples: int, seed: int
) -> Iterator[tuple[str, float]]:
    a, b = (study.truth_N, study.a_N), (study.truth_N, study.b_N)
    metric, group = scenario.metric, study.group_N
    groups = groups_of("reject", group, study.truth_N, has_classes=True)
    statistic = statistic_of(scenario, study, groups.code_N, groups.n_groups)
    settings = Resampling(n_resamples=n_resamples, seed=seed)
    found, _ = bootstrap_distribution("difference", statistic, groups, settings)
    yield "bootstrap, percentile", found.p_value(is_bca=False)
    yield "bootstrap, bca", found.p_value(is_bca=found.bca_ends(CONFIDENCE) is not None)
    low, high = t_interval(found.estimate, found.leave_out_G, CONFIDENCE, (-1.0, 1.0))
    yield "t", 0.0 if low > 0 or high < 0 else 1.0
    swapped = paired_permutation(metric, a, b, group, n_permutations=n_resamples - 1, seed=seed)
    yield "permutation", swapped.p_value
    if metric is AUROC and min(len(np.unique(group[study.truth_N == c])) for c in (0, 1)) > 1:
        yield "delong, patients", delong_test(*a, study.b_N, group).p_value
        yield "delong, rows", delong_test(*a, study.b_N).p_value


def main() -> None:
    """Simulate all scenarios, print tables and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", type=int, default=300, help="of each scenario and number")
    parser.add_argument("--resamples", type=int, default=400, help="of each study")
    parser.add_argument("--patients", type=int, nargs="+", default=[5, 10, 20, 50, 100, 200])
    parser.add_argument("--only", nargs="+", choices=[*SCENARIOS, "tests"], default=None)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # of the workers, which are spawned below
    started = time.perf_counter()
    jobs = list(_jobs(given))
    with ProcessPoolExecutor(given.workers, mp_context=get_context("spawn")) as pool:
        found = []
        for job, got in zip(jobs, pool.map(_run, jobs), strict=True):
            print(*job, f"{time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
            found.append(got)
    figures: dict[str, Any] = {"coverage": {}, "tests": {}}
    for (kind, name, n_patients, *_), got in zip(jobs, found, strict=True):
        table = figures["coverage" if kind == "cover" else "tests"]
        title = name if kind == "cover" else f"{name}, {kind}"
        table.setdefault(title, {})[n_patients] = got
    _print(figures["coverage"], "coverage", given.patients)
    _print(figures["coverage"], "width", given.patients)
    _print(figures["tests"], "rejected", given.patients)
    mixed = figures["coverage"].get("balanced accuracy, 3 mixed classes", {})
    _print({"resamples short of a class": mixed}, "short_of_a_class", given.patients)
    _print({"patients alone in their stratum": mixed}, "alone", given.patients)
    print(f"\n{time.perf_counter() - started:.0f} s, {given.studies} studies a cell")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def _jobs(given: argparse.Namespace) -> Iterator[tuple[Any, ...]]:
    """What to run, the longest first."""
    for n_patients in sorted(given.patients, reverse=True):
        if (given.only is None or "tests" in given.only) and 10 < n_patients < 200:
            for name in TESTS:
                for kind in ("equal models", "different models"):
                    yield kind, name, n_patients, given.studies, given.resamples
        for name in SCENARIOS:
            if given.only is None or name in given.only:
                yield "cover", name, n_patients, given.studies, given.resamples


def _run(job: tuple[Any, ...]) -> dict[str, Any]:
    kind, name, n_patients, n_studies, n_resamples = job
    if kind == "cover":
        return cover(name, n_patients, n_studies, n_resamples=n_resamples, seed=1)
    is_equal = kind == "equal models"
    return reject(name, n_patients, n_studies, n_resamples=n_resamples, seed=2, is_equal=is_equal)


def _print(tables: dict[str, Any], figure: str, patients: list[int]) -> None:
    """One table a scenario: a line each method, a column each number of patients."""
    for title, table in tables.items():
        if not table:
            continue
        print(f"\n{title}: {figure.replace('_', ' ')}")
        print("| patients |" + "".join(f" {n} |" for n in sorted(table)))
        print("| --- |" + " --- |" * len(table))
        for method in dict.fromkeys(m for n in sorted(table) for m in table[n]):
            cells = [table[n].get(method, {}).get(figure) for n in sorted(table)]
            print(f"| {method} |" + "".join(" - |" if c is None else f" {c:.3f} |" for c in cells))


if __name__ == "__main__":
    main()
