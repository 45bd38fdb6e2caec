"""Cox's loss and hazards against definitions, statsmodels, our probe and MCAT's numbers."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import pooling_inputs as given
from objectives.slide_loss_checks import descended, follows_its_gradient
from statsmodels.duration.hazard_regression import PHReg

from anlage.objectives.slide_survival import (
    bin_of,
    cox_loss,
    hazard_loss,
    hazard_risk,
    hazard_survival,
    survival_bins,
)
from anlage.probes.regression.partial_likelihood import PartialLikelihood
from reference.slow_slide_losses import slow_cox_loss, slow_hazard_loss

TIES = ["efron", "breslow"]
MCAT = json.loads((Path(given.__file__).parent / "bag_pooling.json").read_text())["mcat_nll"]


def cohort(n_rows: int = 25, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Risks, times with many ties, and events."""
    generator = torch.Generator().manual_seed(seed)
    risk = torch.randn(n_rows, generator=generator)
    time = torch.randint(1, 8, (n_rows,), generator=generator)
    return risk, time, torch.rand(n_rows, generator=generator) < 0.6


@pytest.mark.parametrize("ties", TIES)
def test_cox_equals_the_definition_the_probe_and_statsmodels(ties: str) -> None:
    risk, time, event = cohort()
    found = cox_loss(risk, time, event, ties=ties)
    expected = slow_cox_loss(risk.tolist(), time.tolist(), event.tolist(), ties=ties)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    n_events = event.sum().item()
    likelihood = PartialLikelihood.of(time.double().numpy(), event.numpy(), ties=ties, device="cpu")
    assert found.item() == pytest.approx(likelihood.slope(risk.double()).value / n_events, rel=1e-5)
    columns = (time.double().numpy(), risk.double().numpy()[:, None])
    other = PHReg(*columns, status=event.numpy().astype(int), ties=ties)
    assert found.item() == pytest.approx(-other.loglike(np.ones(1)) / n_events, rel=1e-5)


@pytest.mark.parametrize("ties", TIES)
def test_cox_gradient(ties: str) -> None:
    risk, time, event = cohort()
    follows_its_gradient(lambda r: cox_loss(r, time, event, ties=ties), risk)
    point = risk.clone().requires_grad_()
    cox_loss(point, time, event, ties=ties).backward()
    likelihood = PartialLikelihood.of(time.double().numpy(), event.numpy(), ties=ties, device="cpu")
    expected = likelihood.slope(risk.double()).gradient_N / event.sum()
    torch.testing.assert_close(point.grad, expected.float())


@pytest.mark.parametrize("ties", TIES)
def test_cox_does_not_care_for_order_shift_or_unit_of_time(ties: str) -> None:
    risk, time, event = cohort()
    loss = cox_loss(risk, time, event, ties=ties)
    order = torch.randperm(len(risk), generator=torch.Generator().manual_seed(1))
    shuffled = cox_loss(risk[order], time[order], event[order], ties=ties)
    torch.testing.assert_close(shuffled, loss)
    torch.testing.assert_close(cox_loss(risk + 40, time * 30.4, event, ties=ties), loss)
    torch.testing.assert_close(cox_loss(risk[:, None], time, event.float(), ties=ties), loss)


def test_cox_known_values() -> None:
    time, event = torch.arange(1.0, 5), torch.ones(4)
    expected = math.log(math.factorial(4)) / 4
    assert cox_loss(torch.zeros(4), time, event).item() == pytest.approx(expected)
    tied = torch.ones(4)
    assert cox_loss(torch.zeros(4), tied, event).item() == pytest.approx(expected)
    breslow = cox_loss(torch.zeros(4), tied, event, ties="breslow")
    assert breslow.item() == pytest.approx(math.log(4))


@pytest.mark.parametrize("ties", TIES)
def test_cox_stays_finite_at_large_risks(ties: str) -> None:
    risk, time, event = cohort()
    point = (risk * 500).requires_grad_()
    loss = cox_loss(point, time, event, ties=ties)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(point.grad).all()


def test_a_step_without_events_costs_nothing_and_moves_nothing() -> None:
    risk = torch.randn(5).requires_grad_()
    loss = cox_loss(risk, torch.arange(5), torch.zeros(5))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(risk.grad, torch.zeros(5))


def test_cox_descent_puts_early_deaths_first() -> None:
    time = torch.tensor([5.0, 1, 3, 2, 4])
    risk = descended(lambda r: cox_loss(r, time, torch.ones(5)), torch.zeros(5), rate=1.0)
    assert torch.equal(risk.argsort(descending=True), time.argsort())


def test_low_precision_is_widened() -> None:
    risk, time, event = cohort()
    loss = cox_loss(risk.bfloat16(), time, event)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, cox_loss(risk.bfloat16().float(), time, event))


def test_bins_hold_as_many_events_each() -> None:
    generator = torch.Generator().manual_seed(3)
    time, event = torch.rand(400, generator=generator), torch.arange(400) % 2
    edges = survival_bins(time, event, n_bins=4)
    expected = np.quantile(time[event == 1].double().numpy(), [0.25, 0.5, 0.75])
    np.testing.assert_allclose(edges, expected)
    assert bin_of(time[event == 1], edges).bincount().tolist() == [50] * 4
    ends = torch.tensor([0.0, 1e9, float(edges[1])]).double()
    assert bin_of(ends, edges).tolist() == [0, 3, 2]
    columns = torch.stack([ends, ends], dim=1)
    assert bin_of(columns[:, 0], edges).tolist() == [0, 3, 2]


def test_hazards_equal_one_bag_at_a_time_and_mcat() -> None:
    bins, events = torch.tensor(given.HAZARD_BINS), torch.tensor(given.HAZARD_EVENTS)
    for alpha, theirs in MCAT.items():
        weight = 1 - float(alpha)
        found = hazard_loss(given.HAZARD_LOGITS, bins, events, censored_weight=weight)
        expected = [
            slow_hazard_loss(logits, place, event, weight)
            for logits, place, event in zip(
                given.HAZARD_LOGITS.tolist(), bins.tolist(), events.tolist(), strict=True
            )
        ]
        torch.testing.assert_close(found, torch.tensor(expected))
        torch.testing.assert_close(found, torch.tensor(theirs), atol=1e-5, rtol=1e-5)


def test_the_likelihood_of_events_sums_to_one_with_survival() -> None:
    logits = given.HAZARD_LOGITS[:1].expand(4, -1)
    chance = (-hazard_loss(logits, torch.arange(4), torch.ones(4))).exp()
    survivors = hazard_survival(logits)[0, -1]
    assert (chance.sum() + survivors).item() == pytest.approx(1, abs=1e-6)


def test_hazards_decode_to_falling_survival_and_a_risk() -> None:
    survival = hazard_survival(torch.zeros(1, 3))
    assert survival[0].tolist() == pytest.approx([0.5, 0.25, 0.125])
    assert hazard_risk(torch.zeros(1, 3)).item() == pytest.approx(-0.875)
    assert (hazard_survival(given.HAZARD_LOGITS).diff(dim=1) <= 0).all()
    sure = torch.tensor([[1e4, 0, 0], [-1e4, -1e4, -1e4]])
    assert hazard_risk(sure).tolist() == [0, -3]


def test_hazard_gradient_and_direction() -> None:
    bins, events = torch.tensor(given.HAZARD_BINS), torch.tensor(given.HAZARD_EVENTS)

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return hazard_loss(logits, bins, events, censored_weight=1.0)

    follows_its_gradient(loss, given.HAZARD_LOGITS)
    risk = hazard_risk(descended(loss, torch.zeros(8, 4)))
    assert (risk[:4].diff() < 0).all()
    assert (risk[4:].diff() < 0).all()
    assert (risk[4:] < risk[:4]).all()


RISK, TIME, EVENT = cohort()
LOGITS = given.HAZARD_LOGITS


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: cox_loss(RISK, TIME[:3], EVENT[:3]), "got (25, 1) and (3,)"),
        (lambda: cox_loss(RISK, TIME, EVENT[:3]), "one time and one event"),
        (lambda: cox_loss(RISK.expand(2, -1).T, TIME, EVENT), "logits of shape (bags, 1)"),
        (lambda: cox_loss(RISK / 0, TIME, EVENT), "finite risks; got 25 of 25"),
        (lambda: cox_loss(RISK, TIME * float("nan"), EVENT), "finite times; got 25 of 25"),
        (lambda: cox_loss(RISK, TIME - 3, EVENT), "times of 0 or more; got -2"),
        (lambda: cox_loss(RISK, TIME, EVENT * 2), "whole numbers, 0 to 1; got [2.0"),
        (lambda: cox_loss(RISK, TIME, EVENT, ties="exact"), "'efron' or 'breslow'; got 'exact'"),
        (lambda: survival_bins(TIME, EVENT * 0), "got 0 events at 0 times"),
        (lambda: survival_bins(TIME * 0 + 3, EVENT), "events at 1 times. Ask for fewer bins"),
        (lambda: survival_bins(TIME, EVENT, n_bins=1), "2 bins or more; got 1"),
        (lambda: hazard_loss(LOGITS, torch.arange(8), torch.ones(8)), "0 to 3; got [4.0, 5.0"),
        (lambda: hazard_loss(LOGITS, torch.zeros(8), torch.ones(7)), "one time and one event"),
        (lambda: hazard_loss(LOGITS / 0, torch.zeros(8), torch.ones(8)), "finite logits"),
        (
            lambda: hazard_loss(LOGITS, torch.zeros(8), torch.ones(8), censored_weight=2),
            "0 <= censored_weight <= 1; got 2",
        ),
    ],
)
def test_refusals(call, says: str) -> None:
    with pytest.raises(ValueError, match="needs") as refusal:
        call()
    assert says in str(refusal.value)
