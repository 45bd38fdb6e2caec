from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from anlage.tiles.handles import SlideHandles


class Handle:
    """Knows whether two threads ever held it at once."""

    def __init__(self, slide_id: str) -> None:
        self.slide_id, self.is_open, self.users = slide_id, True, 0

    def close(self) -> None:
        self.is_open = False


class Opener:
    def __init__(self) -> None:
        self.opened: list[Handle] = []

    def __call__(self, slide_id: str) -> Any:
        self.opened.append(Handle(slide_id))
        return self.opened[-1]

    @property
    def n_open(self) -> int:
        return sum(handle.is_open for handle in self.opened)


def test_a_handle_is_used_again() -> None:
    opener = Opener()
    handles = SlideHandles(opener, max_idle=4)
    for _ in range(5):
        with handles.borrow("a") as slide:
            assert slide.is_open
    assert len(opener.opened) == 1


def test_the_longest_unused_is_closed_past_the_bound() -> None:
    opener = Opener()
    handles = SlideHandles(opener, max_idle=2)
    for name in "abac":
        with handles.borrow(name):
            pass
    assert [(h.slide_id, h.is_open) for h in opener.opened] == [
        *(("a", True), ("b", False), ("c", True)),
    ]
    with handles.borrow("b"):
        assert opener.n_open == 3
    assert opener.n_open == 2


def test_a_handle_that_failed_is_not_kept() -> None:
    opener = Opener()
    handles = SlideHandles(opener, max_idle=2)
    with pytest.raises(OSError, match="gone"), handles.borrow("a"):
        raise OSError(2, "gone")
    assert opener.n_open == 0
    with handles.borrow("a") as slide:
        assert slide.is_open


def test_close_closes_what_is_lent_once_it_comes_back() -> None:
    opener = Opener()
    handles = SlideHandles(opener, max_idle=2)
    with handles.borrow("a"):
        with handles.borrow("b"):
            pass
        handles.close()
        assert [h.is_open for h in opener.opened] == [True, False]
    assert opener.n_open == 0


def test_many_threads_never_share_a_handle_and_stay_bounded() -> None:
    opener = Opener()
    handles = SlideHandles(opener, max_idle=3)

    def use(i: int) -> None:
        with handles.borrow(f"s{i * 7 % 5}") as slide:
            slide.users += 1
            assert slide.users == 1
            assert slide.is_open
            assert opener.n_open <= 3 + 8
            slide.users -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(3000)))
    assert opener.n_open <= 3
    handles.close()
    assert opener.n_open == 0
