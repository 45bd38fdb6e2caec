"""The stream: the same tiles however they are read, everything that goes wrong counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

from anlage.distributed import ALONE, Ranks
from anlage.errors import SlideError, TrainingError
from anlage.geometry import Size
from anlage.slides.levels import TileWindow, read_tile
from anlage.slides.reader import Level, SlideReader
from anlage.slides.resolution import Resolution
from anlage.tiles.keyed_random import Purpose, uniforms
from anlage.tiles.quarantine import ErrorPolicy
from anlage.tiles.region_reads import MAX_ATTEMPTS
from anlage.tiles.sampling import TileRequest
from anlage.tiles.stream import TileBatch, TileStream
from anlage.tiles.windows import Windows

EDGE, PX = 640, 24
VANISHED = "has vanished. Copy it again."
PICTURE = np.stack([*np.mgrid[:EDGE, :EDGE], np.zeros((EDGE, EDGE))], -1) % 241
PICTURE = PICTURE.astype(np.uint8)
Hook = Callable[[str], None]


def nothing(_: str) -> None:
    """A read that goes well."""


class PaintedSlide(SlideReader):
    """Every pixel says where it is and on which slide."""

    reader = "painted"

    def __init__(self, slide_id: str, before_read: Hook) -> None:
        self.slide_id, self.before_read = slide_id, before_read
        levels, resolution = [Level(EDGE, EDGE, 1.0)], Resolution(0.5, "vendor")
        super().__init__(slide_id, vendor="test", levels=levels, resolution=resolution)

    def _read_inside(self, level: int, left: int, top: int, size: Size) -> NDArray[np.uint8]:
        assert level == 0
        self.before_read(self.slide_id)
        pixels = PICTURE[top : top + size.height, left : left + size.width].copy()
        pixels[..., 2] = ord(self.slide_id)
        return pixels

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

    def __init__(
        self, before_read: Hook = nothing, *, before_open: Hook = nothing, scheme: str = ""
    ) -> None:
        self.before_read, self.before_open = before_read, before_open
        self.uris = pa.chunked_array([["a.svs"], [f"{scheme}b.svs"]])
        self.opened: list[PaintedSlide] = []

    def column(self, name: str) -> pa.ChunkedArray:
        assert name == "uri"
        return self.uris

    def open_slide(self, slide_id: str) -> SlideReader:
        self.before_open(slide_id)
        self.opened.append(PaintedSlide(slide_id, self.before_read))
        return self.opened[-1]


class FakeSampler:
    """Keeps the contract of ``TileSampler`` with places anywhere on equal slides."""

    size_px = PX

    def __init__(
        self, names: str = "abc", *, k: int = 1, batch_size: int = 8, factors: Any = (1.0,)
    ) -> None:
        self.names, self.batch_size, self.view_mpp_factors = names, batch_size, factors
        self._windows = Windows(2, batch_size, k)
        self.steps_per_window = self._windows.steps
        self.region_of = self._windows.region_of
        self.samples_of = self._windows.samples_of
        self.quarantined: dict[str, int] = {}
        self.drawn: list[int] = []

    def quarantine(self, slide_id: str, *, from_step: int) -> None:
        assert from_step % self.steps_per_window == 0
        self.quarantined[slide_id] = from_step

    def draw(self, g: int, *, attempt: int = 0) -> TileRequest:
        if attempt:
            return self._request(g, attempt, key=g)
        region = int(self.region_of(np.array([g]))[0])
        return next(r for r in self.draw_region(region) if r.g == g)

    def draw_region(self, region: int) -> list[TileRequest]:
        return [self._request(int(g), 0, key=region + 10**6) for g in self.samples_of(region)]

    def _request(self, g: int, attempt: int, *, key: int) -> TileRequest:
        self.drawn.append(g)
        step = g // self.batch_size
        first = step // self.steps_per_window * self.steps_per_window
        open_names = [n for n in self.names if first < self.quarantined.get(n, 10**9)]
        u_slide, u_mpp = uniforms(2, seed=1, g=key, purpose=Purpose.TILE, item=attempt)
        u_x, u_y = uniforms(2, seed=3, g=g, purpose=Purpose.TILE, item=attempt)
        name = open_names[int(u_slide * len(open_names))]
        mpp = (0.5, 1.25)[int(u_mpp * 2)]
        x, y = (int(u * (EDGE - 400)) + 100 for u in (u_x, u_y))
        views = tuple(TileWindow(x, y, PX, mpp * factor) for factor in self.view_mpp_factors)
        return TileRequest(g, attempt, self.names.index(name), name, x, y, mpp, PX, views)


def stream(slides: Slides, sampler: FakeSampler | None = None, **settings: Any) -> TileStream:
    return TileStream(slides, sampler or FakeSampler(), **settings)  # type: ignore[arg-type]


def read(first: int, last: int, *, k: int = 1, **settings: Any) -> list[TileBatch]:
    ranks = settings.pop("ranks", ALONE)
    slides = settings.pop("slides", None) or Slides()
    with stream(slides, FakeSampler(k=k), **settings) as tiles:
        return list(tiles.batches(first, last, ranks=ranks))


def pixels_of(batches: list[TileBatch]) -> torch.Tensor:
    return torch.stack([batch.pixels for batch in batches])


def threads_left() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("anlage-tiles")]


def dawdle(_: str) -> None:
    time.sleep(np.random.default_rng().random() * 0.001)


class RedFilter:
    """Rejects a third of the tiles, by their first pixel."""

    name: ClassVar[str] = "red"

    def keeps(self, tile_SS3: NDArray[np.uint8], *, mpp: float) -> bool:
        assert mpp in {0.5, 1.25}
        return tile_SS3[0, 0, 0] % 3 != 0


def test_a_batch_holds_the_tiles_of_its_step() -> None:
    (batch,) = read(3, 4)
    assert batch.g.tolist() == list(range(24, 32))
    assert batch.g.dtype == np.int64
    assert batch.pixels.shape == (8, 3, PX, PX)
    assert batch.pixels.dtype == torch.uint8
    assert batch.n_read_errors == 0
    assert not batch.rejected
    assert batch.requests == [FakeSampler().draw(g) for g in range(24, 32)]
    for pixels, r in zip(batch.pixels, batch.requests, strict=True):
        expected = read_tile(PaintedSlide(r.slide_id, nothing), r.x, r.y, size_px=PX, mpp=r.mpp)
        np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize(("k", "scheme"), [(1, ""), (4, ""), (4, "s3://bucket/"), (16, "")])
def test_tiles_depend_on_neither_threads_nor_ranks_nor_where_a_run_begins(
    k: int, scheme: str
) -> None:
    n_steps = FakeSampler(k=k).steps_per_window + 5  # into the second window

    def slides() -> Slides:
        return Slides(dawdle, scheme=scheme)

    one = pixels_of(read(0, n_steps, k=k, threads=1, prefetch=1, filters=[RedFilter()]))
    for threads, prefetch in ((2, 3), (5, 9)):
        how = {"threads": threads, "prefetch": prefetch, "slides": slides()}
        assert torch.equal(one, pixels_of(read(0, n_steps, k=k, filters=[RedFilter()], **how)))
    for world_size in (2, 4):
        ranks = [
            pixels_of(read(0, n_steps, k=k, ranks=Ranks(r, world_size), filters=[RedFilter()]))
            for r in range(world_size)
        ]
        assert torch.equal(one, torch.cat(ranks, dim=1))
    first = n_steps - 7  # in the middle of the first window
    resumed = read(first, n_steps, k=k, slides=slides(), filters=[RedFilter()])
    assert torch.equal(one[first:], pixels_of(resumed))


def test_a_resumed_run_reads_only_what_it_still_needs() -> None:
    n_steps = FakeSampler(k=16).steps_per_window
    n_read = []
    read(n_steps - 3, n_steps, k=16, slides=Slides(n_read.append))
    assert len(n_read) == 3 * 8


def test_a_region_is_opened_and_read_together() -> None:
    """Each region asks its slide once, for all of its tiles at a time."""
    sampler, slides = FakeSampler(k=16), Slides()
    with stream(slides, sampler, threads=1) as tiles:
        list(tiles.batches(0, sampler.steps_per_window))
    regions = sampler.region_of(np.array(sampler.drawn))
    assert np.count_nonzero(np.diff(regions)) == 63
    assert len(slides.opened) == 3


def test_several_views_of_a_centre_get_an_axis() -> None:
    sampler = FakeSampler(factors=(1.0, 2.0))
    with stream(Slides(), sampler) as tiles:
        (batch,) = tiles.batches(0, 1)
    assert batch.pixels.shape == (8, 2, 3, PX, PX)
    for pixels, r in zip(batch.pixels, batch.requests, strict=True):
        slide = PaintedSlide(r.slide_id, nothing)
        for view, window in zip(pixels, r.views, strict=True):
            expected = read_tile(slide, window.x, window.y, size_px=PX, mpp=window.mpp)
            np.testing.assert_array_equal(view.permute(1, 2, 0).numpy(), expected)
    assert [w.mpp for w in batch.requests[0].views] == [r * batch.requests[0].mpp for r in (1, 2)]


def test_slides_stay_open_between_tiles_and_are_closed_at_the_end() -> None:
    slides = Slides()
    with stream(slides, threads=2) as tiles:
        for _ in tiles.batches(0, 20):
            pass
        assert len(slides.opened) == 3
    assert all(slide._is_closed for slide in slides.opened)
    assert threads_left() == []


@pytest.mark.parametrize("scheme", ["", "s3://bucket/"])
@pytest.mark.parametrize("where", ["before_read", "before_open"])
def test_a_slide_that_disappears_costs_its_tiles_only(
    caplog: pytest.LogCaptureFixture, scheme: str, where: str
) -> None:
    gone = threading.Event()

    def vanish(slide_id: str) -> None:
        if slide_id == "b" and (gone.is_set() or where == "before_open"):
            raise SlideError(slide_id, VANISHED)

    sampler = FakeSampler(k=4)
    with stream(Slides(**{where: vanish}, scheme=scheme), sampler, threads=3) as tiles:
        batches = tiles.batches(0, 100)
        before = next(batches)
        gone.set()
        batches = list(batches)
        ahead = sampler.steps_per_window * 2 - 1  # what has begun may reach to their end
        after = batches[ahead:]
    assert {r.slide_id for r in before.requests} >= {"a", "c"}
    drawn = [r for batch in after for r in batch.requests]
    assert {r.slide_id for r in drawn} == {"a", "c"}
    assert [r.g for r in drawn] == list(range((ahead + 1) * 8, 800))
    for r in drawn:
        assert r == FakeSampler(k=4).draw(r.g, attempt=r.attempt)
        assert all(FakeSampler(k=4).draw(r.g, attempt=n).slide_id == "b" for n in range(r.attempt))
    for batch in after:
        assert batch.n_read_errors == sum(r.attempt for r in batch.requests)
    total = sum(b.n_read_errors for b in (before, *batches))
    assert tiles.read_errors == {"b": total}
    assert total > 100
    assert caplog.text.count("drawn again: has vanished") == 1  # of a slide; the rest are counted
    assert f"could not be read (b: {total})" in caplog.text


def test_a_file_error_counts_as_a_read_error() -> None:
    def fail(slide_id: str) -> None:
        if slide_id == "a":
            raise FileNotFoundError(2, slide_id)

    (batch,) = read(0, 1, slides=Slides(before_open=fail))
    assert batch.n_read_errors > 0
    assert {r.slide_id for r in batch.requests} == {"b", "c"}


def test_rejected_tiles_are_drawn_again_and_counted() -> None:
    with stream(Slides(), FakeSampler(k=4), filters=[RedFilter()]) as tiles:
        batches = list(tiles.batches(0, 12))
    for batch in batches:
        assert batch.n_read_errors == 0
        assert batch.rejected == {"red": n} if (n := sum(r.attempt for r in batch.requests)) else 1
        assert all(pixel % 3 for pixel in batch.pixels[:, 0, 0, 0].tolist())
    assert tiles.rejected["red"] == sum(b.rejected["red"] for b in batches) > 0


def test_when_nothing_can_be_read_the_run_stops_and_says_so() -> None:
    def fail(slide_id: str) -> None:
        raise SlideError(slide_id, "is damaged.")

    with (
        stream(Slides(fail), FakeSampler("xy")) as tiles,
        pytest.raises(
            TrainingError,
            match=rf"x, y: no tile of {MAX_ATTEMPTS} draws of sample 0 .* [xy]: is damaged",
        ),
    ):
        next(iter(tiles.batches(0, 9)))
    assert threads_left() == []


def test_when_a_filter_takes_all_the_run_stops_and_names_it() -> None:
    class NoneFilter(RedFilter):
        def keeps(self, tile_SS3: NDArray[np.uint8], *, mpp: float) -> bool:
            return False

    with (
        stream(Slides(), filters=[NoneFilter()]) as tiles,
        pytest.raises(TrainingError, match=r"could be read or passes the filters \(red\)"),
    ):
        next(iter(tiles.batches(0, 9)))


def test_an_error_can_be_raised_instead_always_the_first_of_its_step() -> None:
    def fail(slide_id: str) -> None:
        dawdle(slide_id)
        if slide_id != "a":
            raise SlideError(slide_id, "is damaged.")

    first = next(r for g in range(8) if (r := FakeSampler().draw(g)).slide_id != "a")
    for _ in range(5):
        with (
            stream(Slides(fail), threads=4, errors=ErrorPolicy("raise")) as tiles,
            pytest.raises(SlideError, match=f"^{first.slide_id}: is damaged"),
        ):
            list(tiles.batches(0, 3))


def test_a_bug_is_not_taken_for_a_damaged_tile() -> None:
    def fail(_: str) -> None:
        raise ZeroDivisionError

    with stream(Slides(fail)) as tiles, pytest.raises(ZeroDivisionError):
        next(iter(tiles.batches(0, 1)))


@pytest.mark.parametrize("scheme", ["", "s3://bucket/"])
def test_no_thread_or_slide_is_left_when_the_consumer_raises(scheme: str) -> None:
    reads: list[str] = []

    def slow(slide_id: str) -> None:
        reads.append(slide_id)
        time.sleep(0.005)

    slides = Slides(slow, scheme=scheme)

    def consume() -> None:
        with stream(slides, FakeSampler(k=4), prefetch=5) as tiles:
            for batch in tiles.batches(0, 10**9):
                raise KeyError(batch.g[0])

    with pytest.raises(KeyError):
        consume()
    assert threads_left() == []
    assert all(slide._is_closed for slide in slides.opened)
    n = len(reads)
    assert n < 256 + 5 * 8  # what was not begun is dropped
    time.sleep(0.05)
    assert len(reads) == n


@pytest.mark.parametrize("is_waiting", [True, False])
def test_nobody_waits_for_a_stream_that_is_closed(is_waiting: bool) -> None:
    begun, go_on, ended = threading.Event(), threading.Event(), []

    def hold(_: str) -> None:
        begun.set()
        assert go_on.wait(60)

    def consume() -> None:
        with pytest.raises(RuntimeError, match="the stream is closed"):
            list(batches)
        ended.append(True)

    tiles = stream(Slides(hold))
    batches = tiles.batches(0, 10**9)
    consumer = threading.Thread(target=consume, daemon=True)
    if is_waiting:
        consumer.start()
        assert begun.wait(60)
        threading.Timer(0.05, go_on.set).start()
    tiles.close()
    if not is_waiting:
        consumer.start()
    consumer.join(60)
    assert ended


@pytest.mark.parametrize(("k", "scheme"), [(1, ""), (4, ""), (4, "s3://bucket/")])
def test_reading_runs_ahead_and_is_bounded(k: int, scheme: str) -> None:
    reads: list[str] = []
    sampler = FakeSampler(k=k)
    with stream(Slides(reads.append, scheme=scheme), sampler, prefetch=2) as tiles:
        batches = tiles.batches(0, 10**9)
        for n_used in range(1, 7):
            next(batches)
            most = (sampler.steps_per_window + 2 + n_used) * 8
            deadline = time.monotonic() + 60
            while len(reads) < most - 4 * k and time.monotonic() < deadline:
                time.sleep(0.002)
            time.sleep(0.02)
            assert most - 4 * k <= len(reads) <= most
        batches.close()


def test_waiting_is_measured() -> None:
    def slow(_: str) -> None:
        time.sleep(0.01)

    with stream(Slides(slow), threads=1, prefetch=2) as tiles:
        batches = tiles.batches(0, 8)
        next(batches)
        first = tiles.wait_s
        assert first > 0.07
        while len(threads_left()) and tiles._reads.decoders._waiting:
            time.sleep(0.01)
        time.sleep(0.1)
        next(batches)
        assert tiles.wait_s - first < first


def test_no_steps_give_no_batches() -> None:
    assert read(5, 5) == []


def test_a_stream_serves_one_reader_after_another() -> None:
    with stream(Slides()) as tiles:
        first = next(iter(tiles.batches(0, 99)))
        again = next(iter(tiles.batches(0, 99)))
        assert torch.equal(first.pixels, again.pixels)


@pytest.mark.parametrize("wrong", [{"threads": 0}, {"prefetch": 0}])
def test_no_threads_or_prefetch_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"TileStream: needs at least 1 thread"):
        stream(Slides(), **wrong)


def test_ranks_that_cannot_share_are_refused() -> None:
    with stream(Slides()) as tiles, pytest.raises(ValueError, match="world_size=3 divides"):
        next(tiles.batches(0, 1, ranks=Ranks(0, 3)))


def pixel_runs(first: int, last: int, journal: Path, **settings: Any) -> list[TileBatch]:
    """Batches of a catalogue whose slide b fails wherever a tile of it lies far to the right."""

    class Torn(PaintedSlide):
        def _read_inside(self, level: int, left: int, top: int, size: Size) -> NDArray[np.uint8]:
            if self.slide_id == "b" and left > 250:
                message = f"is torn at {left}."
                msg = "b"
                raise SlideError(msg, message)
            return super()._read_inside(level, left, top, size)

    class TornSlides(Slides):
        def open_slide(self, slide_id: str) -> SlideReader:
            return Torn(slide_id, dawdle)

    policy = ErrorPolicy(quarantine_after=settings.pop("after", 12))
    how = {"errors": policy, "journal": journal, **settings}
    with stream(TornSlides(), FakeSampler(k=4), **how) as tiles:
        return list(tiles.batches(first, last))


@pytest.mark.parametrize("stopped", [17, 50])
def test_a_quarantine_holds_from_the_same_step_after_a_resume(tmp_path: Path, stopped: int) -> None:
    n_steps = FakeSampler(k=4).steps_per_window * 4
    straight = pixel_runs(0, n_steps, tmp_path / "straight")
    pixel_runs(0, stopped, tmp_path / "resumed", threads=4)
    checkpoint = max(stopped - 6, 0)
    rest = pixel_runs(checkpoint, n_steps, tmp_path / "resumed", threads=1)
    assert torch.equal(pixels_of(straight[checkpoint:]), pixels_of(rest))
    assert (tmp_path / "straight").read_bytes() == (tmp_path / "resumed").read_bytes()
    names = {r.slide_id for batch in straight[-32:] for r in batch.requests}
    assert names == {"a", "c"}
    assert [b.n_read_errors for b in straight[-32:]] == [0] * 32
    assert "b" in {r.slide_id for batch in straight[:32] for r in batch.requests}


def test_a_draw_that_failed_before_the_kill_fails_again_untried(tmp_path: Path) -> None:
    """So the steps that are done again keep their tiles, even if the slide is well by now."""
    n_steps = 12
    broken = pixel_runs(0, n_steps, tmp_path / "log", after=10**6)
    assert sum(batch.n_read_errors for batch in broken) > 5
    policy = ErrorPolicy(quarantine_after=10**6)
    how: dict[str, Any] = {"errors": policy, "journal": tmp_path / "log"}
    well = read(0, n_steps, k=4, **how)
    assert torch.equal(pixels_of(broken), pixels_of(well))
    assert [b.n_read_errors for b in broken] == [b.n_read_errors for b in well]


@pytest.mark.gpu
def test_batches_are_pinned_and_none_is_written_while_it_is_copied() -> None:
    plain = [batch.pixels.clone() for batch in read(0, 40, k=4)]
    copied = []
    with stream(Slides(dawdle), FakeSampler(k=4), threads=4) as tiles:
        for batch in tiles.batches(0, 40):
            assert batch.pixels.is_pinned()
            copied.append(batch.pixels.to("cuda", non_blocking=True))
    torch.cuda.synchronize()
    assert torch.equal(torch.stack(plain), torch.stack(copied).cpu())
