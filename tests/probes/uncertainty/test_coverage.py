"""Do intervals hold the truth, and tests their level? On benchmarks/simulated_studies.py."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from anlage.probes.uncertainty.bootstrap import cluster_bootstrap
from anlage.probes.uncertainty.paired import paired_bootstrap
from anlage.probes.uncertainty.permutation import paired_permutation

N_STUDIES = 1000


@pytest.fixture(scope="module")
def studies():
    path = Path(__file__).parents[3] / "benchmarks" / "simulated_studies.py"
    spec = importlib.util.spec_from_file_location("simulated_studies", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["simulated_studies"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["simulated_studies"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("accuracy, 2 classes", "balanced accuracy, 2 classes", "AUROC"),
        *("balanced accuracy, 3 mixed classes", "difference of balanced accuracy"),
    ],
)
def test_at_100_patients_the_default_interval_holds_the_truth_in_93_to_97_percent(
    studies, name
) -> None:
    scenario, truth = studies.SCENARIOS[name], studies.truth_of(name)
    generator = np.random.default_rng(11)
    held = 0
    for seed in range(N_STUDIES):
        study = studies.whole_study(scenario, generator, 100, scenario.gap)
        sides = [(study.truth_N, labels) for labels in (study.a_N, study.b_N)]
        score = paired_bootstrap if scenario.is_paired else cluster_bootstrap
        columns = sides if scenario.is_paired else sides[:1]
        interval = score(scenario.metric, *columns, study.group_N, n_resamples=400, seed=seed)
        held += interval.low <= truth <= interval.high
    assert 0.93 <= held / N_STUDIES <= 0.97


@pytest.mark.slow
def test_at_50_patients_paired_tests_of_equal_models_say_so(studies) -> None:
    scenario = studies.TESTS["balanced accuracy"]
    generator = np.random.default_rng(12)
    n_said = np.zeros(2, dtype=int)
    for seed in range(N_STUDIES):
        study = studies.whole_study(scenario, generator, 50, 0.0)
        two = ((study.truth_N, study.a_N), (study.truth_N, study.b_N), study.group_N)
        n_said += [
            paired_bootstrap(scenario.metric, *two, n_resamples=400, seed=seed).p_value <= 0.05,
            paired_permutation(scenario.metric, *two, n_permutations=399, seed=seed).p_value
            <= 0.05,
        ]
    low, high = stats.binom.interval(0.99, N_STUDIES, 0.05)
    assert low <= n_said[1] <= high
    assert low <= n_said[0] <= high


def test_studies_have_the_truth_that_they_claim(studies) -> None:
    scenario = studies.SCENARIOS["AUROC"]
    study = scenario.simulate(np.random.default_rng(0), 4000, 0.0)
    found = scenario.metric(study.truth_N, study.a_N)
    assert found == pytest.approx(studies.truth_of("AUROC"), abs=0.02)
