from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anlage.slides.sorted_ids import SortedIds

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


@settings(max_examples=50, deadline=None)
@given(names=st.lists(NAMES, unique=True, max_size=40), other=NAMES)
def test_every_name_is_found_where_it_stands(names: list[str], other: str) -> None:
    ids = SortedIds(pa.chunked_array([names[:7], names[7:]], pa.string()))
    assert [ids.find(name) for name in names] == list(range(len(names)))
    assert ids.find(other) == (names.index(other) if other in names else None)
    assert ids.first_duplicate() is None


@pytest.mark.parametrize("names", [["b", "a", "b"], ["é", "x", "é", "x"], ["", ""]])
def test_a_name_that_stands_twice_is_told(names: list[str]) -> None:
    assert SortedIds(pa.chunked_array([names])).first_duplicate() in names[:2]


def test_no_names_have_none() -> None:
    ids = SortedIds(pa.chunked_array([], pa.string()))
    assert ids.find("a") is None
    assert ids.first_duplicate() is None
