import numpy as np
import pytest

from anlage.probes.metrics.classification import ACCURACY
from anlage.probes.metrics.metric import metric_of_rows
from anlage.probes.uncertainty.multiple_tests import holm
from anlage.probes.uncertainty.paired import paired_bootstrap
from anlage.probes.uncertainty.within_noise import models_within_noise


@pytest.fixture
def models(generator):
    """60 patients; two models equally good, one clearly worse."""
    group = np.repeat(np.arange(60), 5)
    truth = group % 2
    right = {"good": 0.9, "as good": 0.89, "bad": 0.6}
    return {
        name: (truth, np.where(generator.random(300) < chance, truth, 1 - truth))
        for name, chance in right.items()
    }, group


def test_groups_models_that_paired_bootstraps_do_not_tell_apart(models) -> None:
    columns, group = models
    found = models_within_noise(ACCURACY, columns, group, n_resamples=999)
    assert set(found.model_K[:2]) == {"good", "as good"}
    assert found.groups == (found.model_K[:2], ("bad",))
    assert found.in_words() == f"{found.model_K[0]} = {found.model_K[1]}; bad"
    assert found.estimate_K == pytest.approx([ACCURACY(*columns[m]) for m in found.model_K])
    pairs = [(0, 1), (0, 2), (1, 2)]
    raw = [
        paired_bootstrap(
            *(ACCURACY, columns[found.model_K[i]], columns[found.model_K[j]], group),
            n_resamples=999,
        ).p_value
        for i, j in pairs
    ]
    assert [found.p_value_KK[pair] for pair in pairs] == pytest.approx(holm(raw))


def test_few_patients_are_said_to_be_unreliable(models) -> None:
    columns, group = models
    rows = group < 9
    few = {name: tuple(c[rows] for c in given) for name, given in columns.items()}
    found = models_within_noise(ACCURACY, few, group[rows], n_resamples=200)
    assert found.n_groups == 9
    assert found.in_words().endswith(" (9 patients, unreliable)")


def test_errors_are_best_where_they_are_smallest(models) -> None:
    columns, group = models
    error = metric_of_rows(
        lambda t, p: float((t != p).mean()),
        name="error",
        columns=("truth", "predicted"),
        is_better_larger=False,
    )
    found = models_within_noise(error, columns, group, n_resamples=200)
    assert found.model_K[-1] == "bad"


def test_refuses_too_few_resamples_to_tell_anything(models) -> None:
    columns, group = models
    with pytest.raises(ValueError, match="120 resamples for 3 pairs at level 0.05; got 3 models"):
        models_within_noise(ACCURACY, columns, group, n_resamples=100)
    with pytest.raises(ValueError, match="needs two models or more"):
        models_within_noise(ACCURACY, {"good": columns["good"]}, group)
