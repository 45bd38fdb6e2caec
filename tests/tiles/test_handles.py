from __future__ import annotations

import resource
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_server import serve
from PIL import Image
from synthetic_slides import pyramid, tissue_like, write_tiff

from anlage.errors import SlideError
from anlage.slides.reader import open_slide
from anlage.slides.storage.byte_source import NoRoomError
from anlage.tiles.handles import SlideHandles


class Handle:
    def __init__(self, slide_id: str) -> None:
        self.slide_id, self.is_open = slide_id, True

    def close(self) -> None:
        assert self.is_open, "closed twice"
        self.is_open = False


class Opener:
    def __init__(self, delay_s: float = 0.0) -> None:
        self.opened: list[Handle] = []
        self.delay_s = delay_s

    def __call__(self, slide_id: str) -> Any:
        time.sleep(self.delay_s)
        self.opened.append(Handle(slide_id))
        return self.opened[-1]

    @property
    def n_open(self) -> int:
        return sum(handle.is_open for handle in self.opened)


def test_a_handle_is_used_again() -> None:
    opener = Opener()
    handles = SlideHandles(opener, max_open=4)
    for _ in range(5):
        with handles.borrow("a") as slide:
            assert slide.is_open
    assert len(opener.opened) == 1


def test_threads_that_ask_at_once_share_one_handle() -> None:
    opener = Opener(delay_s=0.05)
    handles = SlideHandles(opener, max_open=4)
    together = threading.Barrier(8, timeout=60)

    def use(_: int) -> int:
        together.wait()
        with handles.borrow("a") as slide:
            assert slide.is_open
            return id(slide)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(use, range(8)))) == 1
    assert len(opener.opened) == 1


def test_the_longest_unused_is_closed_past_the_bound() -> None:
    opener = Opener()
    handles = SlideHandles(opener, max_open=2)
    for name in "abac":
        with handles.borrow(name):
            pass
    assert [(h.slide_id, h.is_open) for h in opener.opened] == [
        *(("a", True), ("b", False), ("c", True)),
    ]
    with handles.borrow("b"), handles.borrow("c"), handles.borrow("d"):
        assert opener.n_open == 3  # in use, however many
    assert opener.n_open == 2


def test_a_handle_that_failed_is_not_lent_again_but_serves_who_has_it() -> None:
    opener = Opener()
    handles = SlideHandles(opener, max_open=2)
    with handles.borrow("a") as other:
        with pytest.raises(OSError, match="gone"), handles.borrow("a"):
            raise OSError(2, "gone")
        assert other.is_open
        with handles.borrow("a") as anew:
            assert anew is not other
    assert [h.is_open for h in opener.opened] == [False, True]


def test_a_slide_that_cannot_be_opened_is_tried_again() -> None:
    n_tried = 0

    def opening(slide_id: str) -> Any:
        nonlocal n_tried
        n_tried += 1
        if n_tried < 3:
            raise SlideError(slide_id, "not yet")
        return Handle(slide_id)

    handles = SlideHandles(opening)
    for _ in range(2):
        with pytest.raises(SlideError, match="not yet"):
            handles.take("a")
    assert handles.take("a").slide.is_open


def test_unused_handles_are_closed_where_their_copies_leave_no_room() -> None:
    opener = Opener()

    def opening(slide_id: str) -> Any:
        if opener.n_open == 2:
            raise NoRoomError(slide_id, "no room")
        return opener(slide_id)

    handles = SlideHandles(opening, max_open=9)
    for name in "abcde":
        with handles.borrow(name) as slide:
            assert slide.is_open
    with (
        handles.borrow("f"),
        handles.borrow("g"),
        pytest.raises(NoRoomError, match="h: no room"),
        handles.borrow("h"),
    ):
        pytest.fail("no handle may be closed under its borrowers")
    with handles.borrow("h"):
        pass


def test_copies_of_more_slides_than_have_room_are_read_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANLAGE_CACHE", str(tmp_path / "cache"))
    pixels = tissue_like(60, 40)
    for name in "abcde":
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    size = (tmp_path / "a.png").stat().st_size
    monkeypatch.setenv("ANLAGE_STAGE_GB", f"{2.5 * size / 1e9:.9f}")
    with serve(tmp_path) as server:
        handles = SlideHandles(lambda name: open_slide(server.url(f"{name}.png"), mpp=0.5))
        for name in "abcdea":
            with handles.borrow(name) as slide:
                np.testing.assert_array_equal(slide.read_region(0, 0, 60, 40), pixels)
        handles.close()


def test_close_closes_what_is_lent_once_it_comes_back() -> None:
    opener = Opener()
    handles = SlideHandles(opener, max_open=2)
    with handles.borrow("a"):
        with handles.borrow("b"):
            pass
        handles.close()
        assert [h.is_open for h in opener.opened] == [True, False]
    assert opener.n_open == 0


def test_many_threads_stay_within_the_bound() -> None:
    opener = Opener()
    handles = SlideHandles(opener, max_open=3)

    def use(i: int) -> None:
        shared = handles.take(f"s{i * 7 % 5}")
        assert shared.slide.is_open
        assert opener.n_open <= 3 + 8
        handles.give_back(shared, is_damaged=i % 11 == 0)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(3000)))
    assert opener.n_open <= 3
    handles.close()
    assert opener.n_open == 0


def test_no_more_than_half_of_the_descriptors_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for soft, expected in ((40, 10), (1024, 256), (1 << 20, 512), (2, 1), (-1, 512)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        assert SlideHandles(Opener()).max_open == expected


def test_a_thousand_slides_stay_open_where_descriptors_allow(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", pyramid(200, 160, n_levels=1))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, hard), hard))
    try:
        handles = SlideHandles(lambda _: open_slide(path), max_open=1000)
        lent = [handles.take(str(i)) for i in range(1000)]
        assert handles.max_open == 1000
        for shared in lent:
            assert shared.slide.read_region(60, 60, 8, 8).shape == (8, 8, 3)
            handles.give_back(shared)
        again = handles.take("0")
        assert again is lent[0]
        handles.give_back(again)
        handles.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
