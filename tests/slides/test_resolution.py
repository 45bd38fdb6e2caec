from __future__ import annotations

import math

import pytest

from anlage.errors import ResolutionError
from anlage.slides.resolution import Resolution, Stated, find_resolution

EVERYTHING = Stated(vendor=(0.25, 0.25), tiff=(0.3, 0.3), objective=20)


def found(stated: Stated, *, override: float | None = None) -> Resolution:
    resolution = find_resolution("slide.svs", stated, override=override)
    assert isinstance(resolution, Resolution), resolution
    return resolution


def refused(stated: Stated) -> str:
    error = find_resolution("slide.svs", stated, override=None)
    assert isinstance(error, ResolutionError)
    assert str(error).startswith("slide.svs: ")
    assert "Add an `mpp` column to the labels file" in str(error)
    return str(error)


def test_the_order_of_sources() -> None:
    assert found(EVERYTHING, override=0.4) == Resolution(0.4, "catalogue")
    assert found(EVERYTHING) == Resolution(0.25, "vendor")
    assert found(Stated(tiff=(0.3, 0.3), objective=20)) == Resolution(0.3, "tiff")
    assert found(Stated(objective=20)) == Resolution(0.5, "objective")


def test_nothing_stated_is_refused_with_the_override() -> None:
    assert "says nothing usable about its mpp" in refused(Stated())


@pytest.mark.parametrize("printer", [352.8, 264.6, 0.02, math.inf, math.nan, 0.0])
def test_a_printers_tiff_resolution_is_passed_over(printer: float) -> None:
    assert found(Stated(tiff=(printer, printer), objective=40)).source == "objective"
    refused(Stated(tiff=(printer, printer)))


@pytest.mark.parametrize("absurd", [0.0, -0.25, 5000.0, math.nan, math.inf])
def test_an_absurd_vendor_tag_is_refused_not_passed_over(absurd: float) -> None:
    assert f"x={absurd:g}" in refused(Stated(vendor=(absurd, 0.25), tiff=(0.25, 0.25)))


@pytest.mark.parametrize("power", [0.0, -20.0, 1e6])
def test_an_absurd_objective_is_refused(power: float) -> None:
    refused(Stated(objective=power))


def test_pixels_that_are_not_square_are_refused_with_both_values() -> None:
    message = refused(Stated(vendor=(0.25, 0.26)))
    assert "square" in message
    assert "x=0.25, y=0.26" in message
    refused(Stated(tiff=(0.5, 0.25)))


def test_within_one_percent_it_is_the_mean() -> None:
    assert found(Stated(vendor=(28.969, 28.968))).mpp == pytest.approx(28.9685)
    assert found(Stated(vendor=(0.2500, 0.2524))).mpp == pytest.approx(0.2512)


@pytest.mark.parametrize("override", [0.0, -1.0, math.nan, math.inf, 5000.0])
def test_an_absurd_override_is_refused_at_once(override: float) -> None:
    with pytest.raises(ResolutionError, match=r"slide\.svs: needs an mpp from 0\.01 to 1000"):
        find_resolution("slide.svs", EVERYTHING, override=override)
