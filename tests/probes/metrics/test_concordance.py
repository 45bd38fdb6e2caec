import json
from pathlib import Path

import numpy as np
import pytest

from anlage.probes.metrics import concordance
from anlage.probes.metrics.concordance import HARRELL_C, dynamic_auc, uno_c

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "survival.json").read_text())


def judged(cohort):
    """Events, times and risks of the test side that scikit-survival scored."""
    kept = cohort["scores"]["kept"]
    return tuple(np.array(cohort["test"][name])[kept] for name in ("event", "time", "risk"))


def slow_harrell(event, time, risk):
    right = known = 0.0
    for i in range(len(time)):
        for j in range(len(time)):
            if event[i] and (time[j] > time[i] or (time[j] == time[i] and not event[j])):
                known += 1
                right += 0.5 if abs(risk[i] - risk[j]) <= 1e-8 else float(risk[i] > risk[j])
    return right / known if known else np.nan


def made(generator, n_rows=60):
    time = generator.integers(1, 15, n_rows).astype(float)
    return generator.random(n_rows) < 0.6, time, generator.integers(0, 9, n_rows) / 3


@pytest.mark.parametrize("name", ["distinct", "tied"])
def test_equals_scikit_survival(name):
    cohort = GOLDEN[name]
    scores, train = cohort["scores"], cohort["train"]
    side = (train["time"], train["event"])
    columns = judged(cohort)
    assert HARRELL_C(*columns) == pytest.approx(scores["harrell_c"], abs=1e-12)
    assert uno_c(*side)(*columns) == pytest.approx(scores["uno_c"], abs=1e-12)
    tau = uno_c(*side, tau=scores["tau"])
    assert tau(*columns) == pytest.approx(scores["uno_c_tau"], abs=1e-12)
    auc = [dynamic_auc(*side, at_time=time)(*columns) for time in scores["times"]]
    np.testing.assert_allclose(auc, scores["auc"], atol=1e-12)


def test_equals_a_double_loop_and_known_ends(generator):
    event, time, risk = made(generator)
    assert HARRELL_C(event, time, risk) == pytest.approx(slow_harrell(event, time, risk))
    times = np.arange(1.0, 9.0)
    assert HARRELL_C(np.ones(8), times, -times) == 1
    assert HARRELL_C(np.ones(8), times, times) == 0
    assert HARRELL_C(np.ones(8), times, np.zeros(8)) == 0.5
    assert HARRELL_C([1, 0], [3.0, 3.0], [2.0, 1.0]) == 1  # the event comes first
    assert np.isnan(HARRELL_C([1, 1], [3.0, 3.0], [2.0, 1.0]))


@pytest.mark.parametrize("block_pairs", [1, 300, 4_000_000])
@pytest.mark.parametrize("kept_pairs", [0, 9_000_000])
@pytest.mark.parametrize("n_groups", [60, 17])
def test_weights_are_repeats_of_groups(generator, monkeypatch, block_pairs, kept_pairs, n_groups):
    monkeypatch.setattr(concordance, "BLOCK_PAIRS", block_pairs)
    monkeypatch.setattr(concordance, "KEPT_PAIRS", kept_pairs)
    columns = made(generator)
    code = generator.permutation(np.arange(60) % n_groups)
    weight = generator.integers(0, 4, (3, n_groups)).astype(float)
    side = (generator.integers(5, 30, 40), generator.random(40) < 0.5)
    uno = uno_c(*side, tau=12)
    values = HARRELL_C.over_groups(columns, code, n_groups)(weight)
    weighted = uno.over_groups(columns, code, n_groups)(weight)
    for value, of_uno, weight_G in zip(values, weighted, weight, strict=True):
        rows = np.repeat(np.arange(60), weight_G[code].astype(int))
        repeated = [column[rows] for column in columns]
        assert value == pytest.approx(slow_harrell(*repeated), abs=1e-12)
        assert of_uno == pytest.approx(uno(*repeated), abs=1e-12)


def test_a_group_without_rows_changes_nothing(generator):
    columns = made(generator)
    code = 2 * (np.arange(60) % 9)
    statistic = HARRELL_C.over_groups(columns, code, 18)
    assert statistic(np.ones((1, 18)))[0] == pytest.approx(HARRELL_C(*columns))


def test_bad_columns_are_refused(generator):
    event, time, risk = made(generator)
    with pytest.raises(ValueError, match="event needs to be True/False or 1/0"):
        HARRELL_C(time, event, risk)
    with pytest.raises(ValueError, match="finite number >= 0"):
        HARRELL_C(event, -time, risk)
    with pytest.raises(ValueError, match="finite number >= 0"):
        HARRELL_C(event, np.where(time > 5, np.nan, time), risk)
    with pytest.raises(ValueError, match="one event and one time"):
        HARRELL_C(event[1:], time, risk)
    with pytest.raises(ValueError, match="risk needs one finite number"):
        HARRELL_C(event, time, np.full(60, np.nan))
    nobody = np.zeros(60)
    for metric in (HARRELL_C, uno_c(time, event), dynamic_auc(time, event, at_time=5)):
        with pytest.raises(ValueError, match="needs an event or more; got 60 rows, all censored"):
            metric(nobody, time, risk)
    under = HARRELL_C.over_groups((event, time, risk), np.arange(60), 60)
    assert np.isnan(under((~event).astype(float)[None])).all()  # a resample of the censored
    with pytest.raises(ValueError, match="tau needs to be > 0"):
        uno_c(time, event, tau=0)
    with pytest.raises(ValueError, match="beyond 4"):
        uno_c([1, 4, 4], [0, 1, 1])([1, 0], [9, 10], [1, 2])
    with pytest.raises(ValueError, match="all are censored"):
        uno_c([1, 2, 4], [1, 0, 0])([1, 0], [5, 10], [1, 2])
    with pytest.raises(ValueError, match="at_time needs to be > 0"):
        dynamic_auc(time, event, at_time=-1)
