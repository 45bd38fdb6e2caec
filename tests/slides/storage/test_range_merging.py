from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from anlage.slides.storage.range_merging import cut_apart, merge_ranges

RANGES = st.lists(st.tuples(st.integers(0, 900), st.integers(0, 100)), max_size=20)
DATA = bytes(i * 37 % 251 for i in range(1000))


@given(RANGES, st.integers(0, 300), st.integers(1, 1000))
def test_every_range_gets_its_bytes(ranges: list[tuple[int, int]], gap: int, longest: int) -> None:
    pieces = merge_ranges(ranges, gap=gap, longest=longest)
    fetched = [DATA[piece.offset : piece.offset + piece.count] for piece in pieces]
    expected = [DATA[offset : offset + count] for offset, count in ranges]
    assert cut_apart(pieces, fetched, len(ranges)) == expected


@given(RANGES, st.integers(0, 300), st.integers(100, 1000))
def test_pieces_keep_to_the_rules(ranges: list[tuple[int, int]], gap: int, longest: int) -> None:
    pieces = merge_ranges(ranges, gap=gap, longest=longest)
    assert all(0 < piece.count <= longest for piece in pieces)
    for first, second in pairwise(pieces):
        assert first.offset <= second.offset
        end = first.offset + first.count
        reach = second.offset + second.parts[0][2]  # where the range that begins it ends
        is_far = second.offset > end + gap
        assert is_far or max(reach, end) - first.offset > longest


def test_near_ranges_are_one_request() -> None:
    pieces = merge_ranges([(100, 10), (0, 10), (20, 10)], gap=10, longest=1000)
    assert [(piece.offset, piece.count) for piece in pieces] == [(0, 30), (100, 10)]
