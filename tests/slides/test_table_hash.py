from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anlage.slides.table_hash import hash_blocks

GOLDEN = "0f378a2769c37b4ed45eb1bf1a6919c0e7ffbcb9621c2eb470b3bf60389a7d09"
TEXTS = ["ä", None, "", "a much longer name than the others", "b", "ä"]


def hashed(*blocks: pa.Table) -> str:
    return hash_blocks(blocks, blocks[0].schema)


def table() -> pa.Table:
    return pa.table(
        {
            "text": TEXTS,
            "number": [1, None, 3, 4, 5, 6],
            "share": [0.5, 1.5, None, 2.0, float("nan"), -0.0],
            "is": [True, None, False, True, True, False],
            "list": pa.array([[1, 2], None, [], [3], [None], [4]], pa.list_(pa.int64())),
            "deep": [[{"x": "a", "y": [1.0]}], [], None, [{"x": None, "y": []}], None, [None]],
            "day": pa.array([1, None, 3, 4, 5, 6], pa.date32()),
            "raw": [b"\0", b"", None, b"xyz", b"1", b"2"],
            "none": pa.nulls(6),
        }
    )


def test_the_hash_is_the_same_for_ever() -> None:
    """A catalogue's fingerprint is written into runs, encoders and bags."""
    assert hashed(pa.table({"a": ["x", None], "b": [1.0, 2.0]})) == GOLDEN


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, 6), max_size=4), offset=st.integers(0, 3))
def test_only_values_count_not_how_they_are_cut(cuts: list[int], offset: int) -> None:
    whole = table()
    edges = [0, *sorted(cuts), 6]
    blocks = [whole.slice(a, b - a) for a, b in pairwise(edges)]
    assert hashed(*blocks) == hashed(whole)
    assert hashed(pa.concat_tables(blocks)) == hashed(whole)
    longer = pa.concat_tables([whole.slice(0, offset), whole]).combine_chunks()
    assert hashed(longer.slice(offset)) == hashed(whole)
    assert hashed(whole.select(whole.column_names[::-1])) == hashed(whole)


def test_what_lies_below_a_null_does_not_count() -> None:
    values = pa.py_buffer((7).to_bytes(8, "little") + (9).to_bytes(8, "little"))
    hidden = pa.Array.from_buffers(pa.int64(), 2, [pa.py_buffer(b"\x02"), values])
    assert hidden.to_pylist() == [None, 9]
    assert hashed(pa.table({"a": hidden})) == hashed(pa.table({"a": [None, 9]}))


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())], ids=str
)
def test_how_text_is_stored_does_not_count(kind: pa.DataType) -> None:
    text = pa.array(TEXTS, pa.string())
    assert hashed(pa.table({"a": text.cast(kind)})) == hashed(pa.table({"a": text}))


def test_a_file_gives_what_was_written(tmp_path: Path) -> None:
    pq.write_table(table(), tmp_path / "t.parquet", row_group_size=2, compression="gzip")
    assert hashed(pq.read_table(tmp_path / "t.parquet")) == hashed(table())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["a", None], ["a", ""]),
        (["ab", "c"], ["a", "bc"]),
        (["a", "b"], ["b", "a"]),
        ([0, 1], [None, 1]),
        ([0, 1], [0.0, 1.0]),
        ([[1], [2]], [[1, 2], []]),
        ([[1], None], [[1], []]),
        ([None, "a"], ["a", None]),
        ([{"x": 1}], [{"y": 1}]),
        ([b"a"], ["a"]),
        (["a"], ["a", None]),
    ],
)
def test_other_values_give_another_hash(one: list[object], other: list[object]) -> None:
    assert hashed(pa.table({"a": one})) != hashed(pa.table({"a": other}))


def test_the_columns_name_counts() -> None:
    assert hashed(pa.table({"a": [1]})) != hashed(pa.table({"b": [1]}))
