"""Schedules against their closed forms, at both ends and in the middle."""

from __future__ import annotations

import math

import pytest

from anlage.training.schedule import learning_rate, ramp_value
from anlage.training.tile_config import Optimisation, Ramp


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
