"""Schedules against their closed forms, at both ends and in the middle."""

from __future__ import annotations

import math

import numpy as np
import pytest

from anlage.training.optimizer_config import Optimisation
from anlage.training.schedule import learning_rate, ramp_value
from anlage.training.section import Ramp


def test_cosine_ramp_is_half_way_at_half_time() -> None:
    ramp = Ramp(start=0.04, end=0.4)
    assert ramp_value(ramp, 0, steps=100) == pytest.approx(0.04)
    assert ramp_value(ramp, 50, steps=100) == pytest.approx(0.22)
    assert ramp_value(ramp, 100, steps=100) == pytest.approx(0.4)


def test_linear_ramp_ends_after_its_share() -> None:
    ramp = Ramp(start=0.04, end=0.07, over=0.3, shape="linear")
    assert ramp_value(ramp, 15, steps=100) == pytest.approx(0.055)
    assert ramp_value(ramp, 30, steps=100) == 0.07
    assert ramp_value(ramp, 99, steps=100) == 0.07


def test_a_ramp_over_nothing_is_its_end() -> None:
    assert ramp_value(Ramp(start=1.0, end=2.0, over=0.0), 0, steps=10) == 2.0


def test_learning_rate_follows_dinov2() -> None:
    config = Optimisation(peak_lr=1.0, min_lr=0.1, warmup=0.1)
    assert learning_rate(config, 0, steps=100) == 0.0
    assert learning_rate(config, 5, steps=100) == pytest.approx(0.5)
    assert learning_rate(config, 10, steps=100) == pytest.approx(1.0)
    half = 0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2
    assert learning_rate(config, 55, steps=100) == pytest.approx(half)
    rates = [learning_rate(config, s, steps=100) for s in range(10, 100)]
    assert rates == sorted(rates, reverse=True)
    assert min(rates) >= 0.1


def test_learning_rate_without_warm_up_starts_at_its_peak() -> None:
    assert learning_rate(Optimisation(peak_lr=3.0, warmup=0.0), 0, steps=7) == 3.0


def all_rates(config: Optimisation, steps: int) -> list[float]:
    return [learning_rate(config, step, steps=steps) for step in range(steps)]


@pytest.mark.parametrize("steps", [1, 7, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_the_cosine_is_the_one_of_earlier_releases(steps: int, warmup: float) -> None:
    config = Optimisation(peak_lr=3e-4, min_lr=1e-6, warmup=warmup)
    rise = round(warmup * steps)
    assert all_rates(config, steps) == [
        3e-4 * step / rise
        if step < rise
        else 1e-6 + (3e-4 - 1e-6) * (1 + math.cos(math.pi * ((step - rise) / (steps - rise)))) / 2
        for step in range(steps)
    ]


def test_inverse_square_root_falls_by_its_law() -> None:
    config = Optimisation(peak_lr=2.0, min_lr=0.0, warmup=0.04, schedule="inverse_sqrt")
    rates = all_rates(config, 100)
    assert rates[:5] == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0])
    assert rates[16] == pytest.approx(1.0)  # four times the warm-up: half the peak
    assert rates[64] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(2.0 * math.sqrt(4 / 99))


def test_inverse_square_root_cools_down_on_a_line() -> None:
    config = Optimisation(
        peak_lr=2.0, min_lr=0.1, warmup=0.04, schedule="inverse_sqrt", cooldown=0.36
    )
    rates = all_rates(config, 100)
    assert rates[63] == pytest.approx(2.0 * math.sqrt(4 / 63))
    assert rates[64] == pytest.approx(0.5)
    assert rates[82] == pytest.approx((0.5 + 0.1) / 2)
    assert rates[99] == pytest.approx(0.1 + 0.4 / 36)


def test_constant_stays_and_cools_down_on_a_line() -> None:
    config = Optimisation(peak_lr=1.0, min_lr=0.2, warmup=0.1, schedule="constant", cooldown=0.2)
    rates = all_rates(config, 100)
    assert rates[5] == pytest.approx(0.5)
    assert rates[10:81] == [1.0] * 71
    assert rates[90] == pytest.approx(0.6)
    assert rates[99] == pytest.approx(0.2 + 0.8 / 20)


def test_constant_without_warm_up_or_cooldown_is_its_peak() -> None:
    config = Optimisation(peak_lr=0.3, warmup=0.0, schedule="constant")
    assert all_rates(config, 9) == [0.3] * 9


def test_the_cooldown_may_be_all_that_follows_the_warm_up() -> None:
    config = Optimisation(peak_lr=1.0, min_lr=0.0, warmup=0.5, schedule="constant", cooldown=0.5)
    # Both shares of 7 steps round to 4; the warm-up keeps its own.
    assert all_rates(config, 7) == pytest.approx([0, 1 / 4, 2 / 4, 3 / 4, 1, 2 / 3, 1 / 3])


def test_a_warm_up_of_less_than_a_step_does_not_silence_inverse_square_root() -> None:
    config = Optimisation(peak_lr=1.0, min_lr=0.0, warmup=0.001, schedule="inverse_sqrt")
    assert all_rates(config, 5) == pytest.approx([0, 1, 1 / math.sqrt(2), 1 / math.sqrt(3), 0.5])


def test_inverse_square_root_stays_above_the_least_rate() -> None:
    config = Optimisation(
        peak_lr=1.0, min_lr=0.5, warmup=0.01, schedule="inverse_sqrt", cooldown=0.1
    )
    assert all_rates(config, 100)[4:] == [0.5] * 96


@pytest.mark.parametrize("cooldown", [0.0, 0.013, 0.3, 0.9])
@pytest.mark.parametrize("schedule", ["cosine", "inverse_sqrt", "constant"])
def test_rates_rise_without_a_jump_and_then_only_fall(schedule: str, cooldown: float) -> None:
    if schedule == "cosine":
        cooldown = 0.0
    steps = 3000
    config = Optimisation(
        peak_lr=1.0, min_lr=0.01, warmup=0.1, schedule=schedule, cooldown=cooldown
    )
    rates = np.array(all_rates(config, steps))
    assert rates.argmax() == 300
    assert (np.diff(rates[:301]) > 0).all()
    assert (np.diff(rates[300:]) <= 0).all()
    steepest = max(1 / 300, 1 / max(cooldown * steps, 1) if cooldown else 0.0)
    assert np.abs(np.diff(rates)).max() <= steepest * 1.001
    if cooldown:
        slope = rates[-2] - rates[-1]
        assert rates[-1] - slope == pytest.approx(0.01)
