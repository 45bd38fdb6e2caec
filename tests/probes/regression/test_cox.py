import json
from pathlib import Path

import numpy as np
import pytest
import torch
from statsmodels.duration.hazard_regression import PHReg

from anlage.probes.metrics.concordance import HARRELL_C
from anlage.probes.metrics.survival import integrated_brier
from anlage.probes.regression.cox import cox_probe, cox_probe_tuned
from anlage.probes.regression.partial_likelihood import PartialLikelihood
from anlage.probes.splits.grouped import grouped_folds

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "survival.json").read_text())
WEIGHT = np.array([0.7, -0.4, 0.0])


def made(generator, n_rows=150, weight=WEIGHT, *, round_to=None):
    """Patients whose log hazard is linear in their features, a third of them censored."""
    rows = generator.normal(size=(n_rows, len(weight)))
    death = generator.exponential(10 / np.exp(rows @ weight))
    lost = generator.exponential(20, size=n_rows)
    time = np.minimum(death, lost)
    return rows, time if round_to is None else np.ceil(time / round_to) * round_to, death <= lost


def slow_log_likelihood(log_hazard, time, event, ties):
    total, hazard = 0.0, np.exp(log_hazard)
    for at in np.unique(time[event]):
        tied = (time == at) & event
        total += log_hazard[tied].sum()
        for number in range(tied.sum()):
            share = number / tied.sum() if ties == "efron" else 0
            total -= np.log(hazard[time >= at].sum() - share * hazard[tied].sum())
    return total


@pytest.mark.parametrize("ties", ["efron", "breslow"])
@pytest.mark.parametrize("round_to", [None, 3.0])
def test_unpenalised_equals_statsmodels(generator, ties, round_to):
    rows, time, event = made(generator, round_to=round_to)
    head = cox_probe(rows, time, event, l2=0, ties=ties)
    theirs = PHReg(time, rows, status=event.astype(int), ties=ties).fit(disp=0)
    np.testing.assert_allclose(head.weight_D, theirs.params, rtol=1e-6, atol=1e-7)
    assert head.has_converged
    np.testing.assert_allclose(
        head.risk(rows), (rows - rows.mean(axis=0)) @ theirs.params, 1e-5, 1e-6
    )


@pytest.mark.parametrize("name", ["distinct", "tied"])
@pytest.mark.parametrize("ties", ["efron", "breslow"])
@pytest.mark.parametrize("alpha", [1e-8, 3.0])
def test_penalised_equals_scikit_survival(name, ties, alpha):
    cohort = GOLDEN[name]
    scores, train, kept = cohort["scores"], cohort["train"], cohort["scores"]["kept"]
    golden = scores[f"cox_{ties}_{alpha:g}"]
    head = cox_probe(
        *(np.array(train["feature"]), train["time"], train["event"]),
        **{"l2": alpha, "ties": ties, "standardise": False},
    )
    np.testing.assert_allclose(head.weight_D, golden["weight"], rtol=1e-6, atol=1e-8)
    test = {column: np.array(values)[kept] for column, values in cohort["test"].items()}
    survival = head.survival(test["feature"], scores["times"])
    np.testing.assert_allclose(survival[:5], golden["survival"], rtol=1e-6)
    brier = integrated_brier(train["time"], train["event"], times_T=scores["times"])
    value = brier(test["event"], test["time"], survival)
    assert value == pytest.approx(golden["integrated_brier"], rel=1e-6)


@pytest.mark.parametrize("ties", ["efron", "breslow"])
def test_likelihood_gradient_and_curvature_equal_slow_and_numeric_ones(generator, ties):
    rows, time, event = made(generator, 30, round_to=4.0)
    likelihood = PartialLikelihood.of(time, event, ties=ties, device="cpu")
    log_hazard = torch.from_numpy(rows @ WEIGHT)
    slope = likelihood.slope(log_hazard)
    slow = -slow_log_likelihood(log_hazard.numpy(), time, event, ties)
    assert slope.value == pytest.approx(slow, rel=1e-12)
    direction = torch.from_numpy(generator.normal(size=30))
    ahead, behind = (likelihood.slope(log_hazard + sign * 1e-5 * direction) for sign in (1, -1))
    assert float(slope.gradient_N @ direction) == pytest.approx(
        (ahead.value - behind.value) / 2e-5, rel=1e-6
    )
    numeric = (ahead.gradient_N - behind.gradient_N) / 2e-5
    curved = likelihood.curvature(slope, direction[:, None])
    np.testing.assert_allclose(curved[:, 0], numeric, atol=1e-8)
    far = likelihood.slope(log_hazard + 1000)
    assert far.value == pytest.approx(slope.value)


def test_two_patients_in_closed_form():
    # rows 1 and -1, the first dies first: minimise log(1 + exp(-2 w)) + l2 / 2 w^2
    head = cox_probe([[1.0], [-1.0]], [1, 2], [1, 0], l2=0.5, standardise=False)
    weight = float(head.weight_D[0])
    assert 2 / (1 + np.exp(2 * weight)) == pytest.approx(0.5 * weight, rel=1e-7)
    step = 1 / (np.exp(weight) + np.exp(-weight))
    np.testing.assert_allclose(head.hazard_U, [step, step])
    np.testing.assert_allclose(
        head.survival([[0.0]], [0.5, 1, 9]), [[1, np.exp(-step), np.exp(-step)]]
    )


@pytest.mark.parametrize("l2", [0.01, 0.3, 50.0])
def test_wider_than_patients_stands_at_the_optimum(generator, l2):
    rows, time, event = made(generator, 60, np.concatenate([WEIGHT, np.zeros(400)]))
    head = cox_probe(rows, time, event, l2=l2)
    scale = rows.std(axis=0)
    weight = torch.from_numpy(head.weight_D.numpy() * scale).requires_grad_()
    scaled = torch.from_numpy((rows - rows.mean(axis=0)) / scale)
    order = np.argsort(-time, kind="stable")
    log_hazard = (scaled @ weight)[torch.from_numpy(order)]
    at_risk = torch.logcumsumexp(log_hazard, dim=0)
    loss = -((log_hazard - at_risk) * torch.from_numpy(event[order])).sum()
    (loss + l2 / 2 * weight @ weight).backward()
    assert weight.grad.abs().max() < 1e-6
    assert head.has_converged
    assert head.n_components == 59


def test_a_known_hazard_ratio_is_recovered(generator):
    rows, time, event = made(generator, 4000)
    head = cox_probe(rows, time, event, l2=0)
    np.testing.assert_allclose(head.weight_D, WEIGHT, atol=0.06)
    curve = head.survival(np.zeros((1, 3)), [5.0, 10.0])[0]
    np.testing.assert_allclose(curve, np.exp([-0.5, -1.0]), atol=0.03)
    shrunk = cox_probe(rows, time, event, l2=1e9)
    np.testing.assert_allclose(shrunk.weight_D, 0, atol=1e-4)


@pytest.mark.parametrize("ties", ["efron", "breslow"])
def test_tuned_l2_has_the_largest_cross_validated_likelihood(generator, ties):
    weight = np.concatenate([WEIGHT, np.zeros(30)])
    rows, time, event = made(generator, 90, weight, round_to=2.0)
    l2s = [0.1, 10.0, 1000.0]
    group = np.arange(90) // 2
    head = cox_probe_tuned(rows, time, event, group, l2s=l2s, n_folds=3, seed=1, ties=ties)

    gain = np.zeros(3)
    scaled = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    for fold in grouped_folds(event.astype(int), group, n_folds=3, seed=1, fewest_groups=1):
        part = (time[fold.train], event[fold.train], ties)
        for place, l2 in enumerate(l2s):
            own = cox_probe(
                *(scaled[fold.train], *part[:2]), l2=l2, ties=ties, standardise=False
            ).weight_D.numpy()
            for sign, by in ((1, own), (-1, 0 * own)):
                gain[place] += sign * slow_log_likelihood(scaled @ by, time, event, ties)
                gain[place] -= sign * slow_log_likelihood(scaled[fold.train] @ by, *part)
    np.testing.assert_allclose(head.gain_A, gain, rtol=1e-6)
    assert head.l2 == l2s[gain.argmax()]


def test_tuned_on_signal_and_on_noise(generator):
    weight = np.concatenate([2 * WEIGHT, np.zeros(27)])
    rows, time, event = made(generator, 200, weight)
    head = cox_probe_tuned(rows[:140], time[:140], event[:140])
    assert head.gain_A.max() > 3
    assert HARRELL_C(event[140:], time[140:], head.risk(rows[140:])) > 0.6
    noise = cox_probe_tuned(generator.normal(size=(140, 50)), time[:140], event[:140])
    assert noise.gain_A.max() < 2
    assert noise.l2 > 50


def test_bad_input_is_refused(generator):
    rows, time, event = made(generator, 40)
    with pytest.raises(ValueError, match="all censored"):
        cox_probe(rows, time, np.zeros(40), l2=1)
    with pytest.raises(ValueError, match="time needs a finite number >= 0"):
        cox_probe(rows, -time, event, l2=1)
    with pytest.raises(ValueError, match="time needs a finite number >= 0"):
        cox_probe(rows, np.where(event, np.nan, time), event, l2=1)
    with pytest.raises(ValueError, match="Check the order of event and time"):
        cox_probe(rows, event, time, l2=1)
    with pytest.raises(ValueError, match="each of 40 rows; got 39"):
        cox_probe(rows, time[1:], event[1:], l2=1)
    with pytest.raises(ValueError, match="a feature that varies"):
        cox_probe(np.ones((40, 3)), time, event, l2=1)
    with pytest.raises(ValueError, match="l2 needs to be finite, >= 0"):
        cox_probe(rows, time, event, l2=-1)
    with pytest.raises(ValueError, match="n_components needs to be 1 to 3"):
        cox_probe(rows, time, event, l2=1, n_components=4)
    with pytest.raises(ValueError, match="NaN"):
        cox_probe(np.full((40, 2), np.nan), time, event, l2=1)
    with pytest.raises(ValueError, match="> 0, and rising"):
        cox_probe_tuned(rows, time, event, l2s=[1, 0.5])
    with pytest.raises(ValueError, match="a patient with an event for each of 5 folds; got 1"):
        cox_probe_tuned(rows, time, np.arange(40) == 3)


def test_separable_patients_are_refused_without_a_penalty(generator):
    time, event = np.arange(1.0, 21.0), np.ones(20)
    rows = np.stack([-time, generator.normal(size=20)], axis=1)
    with pytest.raises(ValueError, match="likelihood with a maximum"):
        cox_probe(rows, time, event, l2=0)
    with pytest.raises(ValueError, match="likelihood with a maximum"):
        cox_probe(generator.normal(size=(20, 40)), time, event, l2=0)
    head = cox_probe(rows, time, event, l2=1e-3)
    assert head.has_converged
    assert HARRELL_C(event, time, head.risk(rows)) == 1
    assert np.isfinite(head.survival(1e4 * rows, [0.5, 5.0])).all()


def test_constant_features_and_scale_change_nothing(generator):
    rows, time, event = made(generator, 60)
    other = np.concatenate([rows * [1e-4, 1, 1e4] + 7, np.full((60, 1), 0.3)], axis=1)
    one, same = (cox_probe(x, time, event, l2=2) for x in (rows, other))
    np.testing.assert_allclose(one.risk(rows), same.risk(other), rtol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("ties", ["efron", "breslow"])
def test_cuda_gives_the_same(generator, ties):
    rows, time, event = made(generator, 150, round_to=3.0)
    here = cox_probe_tuned(rows, time, event, ties=ties)
    there = cox_probe_tuned(torch.from_numpy(rows).cuda(), time, event, ties=ties)
    assert there.weight_D.is_cuda
    assert there.l2 == here.l2
    np.testing.assert_allclose(there.gain_A, here.gain_A, rtol=1e-6)
    np.testing.assert_allclose(there.risk(rows), here.risk(rows), rtol=1e-6)
