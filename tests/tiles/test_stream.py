from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from anlage.errors import SlideError, TrainingError
from anlage.geometry import Size
from anlage.slides.levels import read_tile
from anlage.slides.reader import Level, SlideReader
from anlage.slides.resolution import Resolution
from anlage.tiles.sampling import SampledSlide, TileSampler
from anlage.tiles.stream import MAX_ATTEMPTS, TileStream

EDGE = 640


class PaintedSlide(SlideReader):
    """Every pixel says where it is and on which slide."""

    reader = "painted"

    def __init__(self, slide_id: str, before_read: Callable[[str], None]) -> None:
        self.slide_id, self.before_read = slide_id, before_read
        levels, resolution = [Level(EDGE, EDGE, 1.0)], Resolution(0.5, "vendor")
        super().__init__(slide_id, vendor="test", levels=levels, resolution=resolution)

    def _read_inside(self, level: int, left: int, top: int, size: Size) -> NDArray[np.uint8]:
        assert level == 0
        self.before_read(self.slide_id)
        y, x = np.mgrid[top : top + size.height, left : left + size.width]
        return np.stack([x % 251, y % 241, np.full_like(x, ord(self.slide_id))], -1).astype("u1")

    @property
    def associated(self) -> tuple[str, ...]:
        return ()

    def read_associated(self, name: str) -> NDArray[np.uint8]:
        raise self._no_such_associated(name)

    @property
    def icc_profile(self) -> bytes | None:
        return None


class Slides:
    """Stands for a catalogue: opens slides, and breaks them where a test wants it."""

    def __init__(self, before_read: Callable[[str], None] = lambda _: None) -> None:
        self.before_read = before_read
        self.opened: list[PaintedSlide] = []

    def open_slide(self, slide_id: str) -> SlideReader:
        self.opened.append(PaintedSlide(slide_id, self.before_read))
        return self.opened[-1]


def sampler(names: str = "abc") -> TileSampler:
    mask = np.ones((40, 40), bool)
    slides = [SampledSlide(name, EDGE, EDGE, 0.5, mask, 8.0) for name in names]
    magnifications = {0.5: 1.0, 1.25: 1.0}
    return TileSampler(slides, seed=2, size_px=24, magnifications=magnifications, min_tissue=0.5)


def stream(slides: Slides, names: str = "abc", **settings: Any) -> TileStream:
    return TileStream(slides, sampler(names), **settings)  # type: ignore[arg-type]


def threads_left() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("anlage-tiles")]


def test_a_batch_holds_the_tiles_of_its_step() -> None:
    with stream(Slides()) as tiles:
        (batch,) = tiles.batches(3, 4, batch_size=10)
    assert batch.g.tolist() == list(range(30, 40))
    assert batch.g.dtype == np.int64
    assert batch.pixels.shape == (10, 3, 24, 24)
    assert batch.pixels.dtype == torch.uint8
    assert batch.n_read_errors == 0
    assert batch.requests == [sampler().draw(g) for g in range(30, 40)]
    for pixels, r in zip(batch.pixels, batch.requests, strict=True):
        slide = PaintedSlide(r.slide_id, lambda _: None)
        expected = read_tile(slide, r.x, r.y, size_px=24, mpp=r.mpp)
        np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), expected)


def test_the_stream_does_not_depend_on_threads_prefetch_or_where_it_begins() -> None:
    def pixels(first: int, **settings: int) -> torch.Tensor:
        def dawdle(_: str) -> None:
            time.sleep(np.random.default_rng().random() * 0.002)

        with stream(Slides(dawdle), **settings) as tiles:
            return torch.stack([b.pixels for b in tiles.batches(first, 6, batch_size=5)])

    one = pixels(0, threads=1, prefetch=1)
    assert torch.equal(one, pixels(0, threads=4, prefetch=3))
    assert torch.equal(one[4:], pixels(4, threads=3, prefetch=9))


def test_ranks_split_a_step() -> None:
    with stream(Slides()) as tiles:
        (whole,) = tiles.batches(2, 3, batch_size=8)
        halves = [
            next(iter(tiles.batches(2, 3, batch_size=4, rank=rank, world_size=2)))
            for rank in (0, 1)
        ]
    assert torch.equal(torch.cat([h.pixels for h in halves]), whole.pixels)
    assert np.concatenate([h.g for h in halves]).tolist() == whole.g.tolist()


def test_slides_stay_open_between_tiles_and_are_closed_at_the_end() -> None:
    slides = Slides()
    with stream(slides, threads=2) as tiles:
        for _ in tiles.batches(0, 20, batch_size=6):
            pass
        assert len(slides.opened) <= 2 * 3
    assert all(slide._is_closed for slide in slides.opened)
    assert threads_left() == []


def test_a_slide_that_disappears_costs_its_tiles_only(caplog: pytest.LogCaptureFixture) -> None:
    gone = threading.Event()

    def vanish(slide_id: str) -> None:
        if slide_id == "b" and gone.is_set():
            raise SlideError(slide_id, "has vanished. Copy it again.")

    with stream(Slides(vanish), threads=3, prefetch=1) as tiles:
        batches = tiles.batches(0, 12, batch_size=8)
        before = next(batches)
        gone.set()
        after = list(batches)[1:]
    assert {r.slide_id for r in before.requests} == {"a", "b", "c"}
    drawn = [r for batch in after for r in batch.requests]
    assert {r.slide_id for r in drawn} == {"a", "c"}
    assert [r.g for r in drawn] == list(range(16, 96))
    for r in drawn:
        assert r == sampler().draw(r.g, attempt=r.attempt)
        assert all(sampler().draw(r.g, attempt=k).slide_id == "b" for k in range(r.attempt))
    assert [b.n_read_errors for b in after] == [sum(r.attempt for r in b.requests) for b in after]
    assert tiles.read_errors["b"] >= sum(b.n_read_errors for b in after) > 0
    assert caplog.text.count("has vanished") == 1  # the first of a slide; the rest are counted
    assert "could not be read (b: " in caplog.text


def test_a_file_error_counts_as_a_read_error() -> None:
    def fail(slide_id: str) -> None:
        if slide_id == "a":
            raise FileNotFoundError(2, slide_id)

    with stream(Slides(fail)) as tiles:
        batch = next(iter(tiles.batches(0, 1, batch_size=20)))
    assert batch.n_read_errors > 0
    assert {r.slide_id for r in batch.requests} == {"b", "c"}


def test_when_nothing_can_be_read_the_run_stops_and_says_so() -> None:
    def fail(slide_id: str) -> None:
        raise SlideError(slide_id, "is damaged.")

    with (
        stream(Slides(fail), "xy") as tiles,
        pytest.raises(TrainingError, match=rf"x, y: no tile of {MAX_ATTEMPTS} draws of sample 0"),
    ):
        next(iter(tiles.batches(0, 9, batch_size=2)))
    assert threads_left() == []


def test_a_bug_is_not_taken_for_a_damaged_tile() -> None:
    def fail(_: str) -> None:
        raise ZeroDivisionError

    with stream(Slides(fail)) as tiles, pytest.raises(ZeroDivisionError):
        next(iter(tiles.batches(0, 1, batch_size=2)))


def test_no_thread_is_left_when_the_consumer_raises() -> None:
    reads = []

    def slow(slide_id: str) -> None:
        reads.append(slide_id)
        time.sleep(0.01)

    def consume() -> None:
        with stream(Slides(slow), prefetch=5) as tiles:
            batches = tiles.batches(0, 10**9, batch_size=4)
            for batch in batches:
                raise KeyError(batch.g[0])

    with pytest.raises(KeyError):
        consume()
    assert threads_left() == []
    n = len(reads)
    assert n <= 12  # of 20 asked for: what was not begun is dropped
    time.sleep(0.05)
    assert len(reads) == n


def test_reading_runs_ahead_and_is_bounded() -> None:
    n_read = 0

    def count(_: str) -> None:
        nonlocal n_read
        n_read += 1

    with stream(Slides(count), threads=1, prefetch=2) as tiles:
        batches = tiles.batches(0, 100, batch_size=4)
        next(batches)
        deadline = time.monotonic() + 60
        while n_read < 12 and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.05)
        assert n_read == 12  # the batch in use and two ahead


def test_waiting_is_measured() -> None:
    def slow(_: str) -> None:
        time.sleep(0.02)

    with stream(Slides(slow), threads=1, prefetch=2) as tiles:
        batches = tiles.batches(0, 3, batch_size=5)
        next(batches)
        first = tiles.wait_s
        assert first > 0.09
        time.sleep(0.3)
        next(batches)
        assert tiles.wait_s - first < 0.05


def test_no_steps_give_no_batches() -> None:
    with stream(Slides()) as tiles:
        assert list(tiles.batches(5, 5, batch_size=4)) == []


@pytest.mark.parametrize("wrong", [{"threads": 0}, {"prefetch": 0}])
def test_no_threads_or_prefetch_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"TileStream: needs at least 1 thread"):
        stream(Slides(), **wrong)
