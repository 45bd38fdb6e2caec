from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from anlage.slides.formats.tiff_metadata import stated_by, vendor_of
from anlage.slides.resolution import Stated


def page(description: str = "", *, kind: str = "", **tags: Any) -> Any:
    values = SimpleNamespace(valueof=lambda name, default=None: tags.get(name, default))
    return SimpleNamespace(
        description=description, tags=values, is_svs=kind == "svs", is_ome=kind == "ome"
    )


@pytest.mark.parametrize(
    ("unit", "per_unit", "mpp"),
    [
        (3, (20000, 1), 0.5),
        (3, (44034000, 1000), 0.22709724),
        (2, (50800, 1), 0.5),
        (None, (254000, 10), 1.0),  # an inch, if the file does not say
    ],
)
def test_tiff_resolution(unit: int | None, per_unit: tuple[int, int], mpp: float) -> None:
    tags = {"XResolution": per_unit, "YResolution": per_unit}
    if unit is not None:
        tags["ResolutionUnit"] = unit
    stated = stated_by(page(**tags))
    assert stated.tiff == (pytest.approx(mpp), pytest.approx(mpp))
    assert stated.vendor is None


@pytest.mark.parametrize(
    "tags",
    [
        {"XResolution": (1, 1), "YResolution": (1, 1), "ResolutionUnit": 1},
        {"XResolution": (1, 1), "ResolutionUnit": 3},
        {"XResolution": (0, 1), "YResolution": (0, 1), "ResolutionUnit": 3},
        {},
    ],
)
def test_no_usable_tiff_resolution(tags: dict[str, Any]) -> None:
    assert stated_by(page(**tags)) == Stated()


def test_aperio() -> None:
    text = "Aperio Image\r\n1x1 -> 2x2|AppMag = 40|Left = 3.5|MPP = 0.2527|Focus = 0"
    stated = stated_by(page(text, kind="svs"))
    assert stated == Stated(vendor=(0.2527, 0.2527), objective=40)
    assert stated_by(page("Aperio Image|AppMag = ?|MPP = e", kind="svs")) == Stated()
    assert stated_by(page("Aperio Image|FooMPP = 0.3", kind="svs")) == Stated()


def ome(pixels: str, objective: str = "") -> str:
    return (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        f'<Instrument>{objective}</Instrument><Image ID="Image:0"><Pixels {pixels}/></Image></OME>'
    )


@pytest.mark.parametrize(
    ("pixels", "mpp"),
    [
        ('PhysicalSizeX="0.25" PhysicalSizeY="0.26"', (0.25, 0.26)),
        ('PhysicalSizeX="250" PhysicalSizeXUnit="nm" PhysicalSizeY="0.25"', (0.25, 0.25)),
        ('PhysicalSizeX="2.5e-4" PhysicalSizeXUnit="mm" PhysicalSizeY="0.25"', (0.25, 0.25)),
        ('PhysicalSizeX="1" PhysicalSizeXUnit="pixel" PhysicalSizeY="1"', None),
        ('PhysicalSizeX="0.25"', None),
        ("", None),
    ],
)
def test_ome(pixels: str, mpp: tuple[float, float] | None) -> None:
    vendor = stated_by(page(ome(pixels), kind="ome")).vendor
    assert vendor == (None if mpp is None else pytest.approx(mpp))


def test_ome_objective() -> None:
    assert stated_by(page(ome("", '<Objective NominalMagnification="20"/>'), kind="ome")) == Stated(
        objective=20
    )


@pytest.mark.parametrize("text", ["", "<OME", "<OME/>", "not xml"])
def test_ome_that_is_no_ome(text: str) -> None:
    assert stated_by(page(text, kind="ome")) == Stated()


def test_vendors() -> None:
    assert [vendor_of(page(kind=k)) for k in ("svs", "ome", "")] == [
        "aperio",
        "ome",
        "generic-tiff",
    ]
