from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from anlage.geometry import Size
from anlage.slides.formats.typed_packing import Arrays, outline, pack, unpack


@dataclass(frozen=True)
class Inner:
    data: bytes
    pair: tuple[float, float] | None = None


@dataclass(frozen=True)
class Outer:
    name: str
    size: Size
    flag: bool
    inner: dict[str, Inner]
    several: tuple[Inner, ...]
    places: NDArray[np.int64]


OUTER = Outer("a", Size(3, 4), True, {"x": Inner(b"\0\1", (1.0, 2.5))}, (Inner(b""),), np.arange(5))


def packed() -> tuple[dict, Arrays]:
    arrays: Arrays = {}
    about = json.loads(json.dumps(pack(OUTER, arrays)))
    return about, arrays


def test_what_is_packed_comes_back() -> None:
    again = unpack(Outer, *packed())
    assert isinstance(again, Outer)
    assert isinstance(again.size, Size)
    assert (again.name, again.size, again.flag) == ("a", (3, 4), True)
    assert again.inner == OUTER.inner
    assert again.several == OUTER.several
    np.testing.assert_array_equal(again.places, OUTER.places)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("name", 3), ("flag", "yes"), ("size", [1]), ("size", [1, "2"]), ("several", [{}])],
        *[("inner", {"x": {"data": "99", "pair": None}}), ("places", "99")],
    ],
)
def test_what_does_not_fit_is_refused(field: str, value: object) -> None:
    about, arrays = packed()
    about[field] = value
    with pytest.raises((TypeError, ValueError, KeyError)):
        unpack(Outer, about, arrays)


def test_fields_must_be_all_there_are() -> None:
    about, arrays = packed()
    with pytest.raises(ValueError, match="needs the fields of"):
        unpack(Outer, {name: about[name] for name in about if name != "flag"}, arrays)
    with pytest.raises(KeyError):
        unpack(Outer, about | {"more": 1}, arrays)


def test_the_outline_tells_layouts_apart() -> None:
    @dataclass(frozen=True)
    class Longer(Inner):
        more: int = 0

    assert outline(Inner) == outline(Inner)
    assert "pair" in outline(Outer)
    assert outline(Longer) != outline(Inner)
