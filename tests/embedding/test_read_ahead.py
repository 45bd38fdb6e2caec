import threading
import time
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest

from anlage.embedding.growing_bag import SlideJob
from anlage.embedding.read_ahead import TileReadAhead
from anlage.embedding.slide_plan import tiles_of
from anlage.errors import SlideError
from anlage.slides.formats.tiled_picture import TiledPicture
from anlage.slides.levels import read_tile
from anlage.slides.regions import start_tiles
from anlage.tiles.spec import TileSpec

SPEC = TileSpec(size_px=32, mpp=1.0, stride_px=32, min_tissue=0.25)


def make_jobs(catalogue, n_slides=5):
    for row in catalogue.rows()[:n_slides]:
        yield SlideJob(row, tiles_of(catalogue, row, SPEC))


def gather(catalogue, jobs, *, batch_size, threads=2):
    """{slide_id: its tiles by row}, and the length of each batch."""
    tiles, lengths = {}, []
    with TileReadAhead(catalogue, SPEC, batch_size=batch_size, threads=threads) as reader:
        for batch in reader.batches(jobs):
            lengths.append(len(batch.pixels_B3SS))
            assert sum(p.slots.stop - p.slots.start for p in batch.pieces) == lengths[-1]
            for piece in batch.pieces:
                seen = tiles.setdefault(piece.job.row.slide_id, {})
                assert not seen.keys() & set(piece.rows.tolist())
                pixels = batch.pixels_B3SS[piece.slots].numpy()
                seen.update(zip(piece.rows.tolist(), pixels, strict=True))
    ordered = {name: [seen[row] for row in sorted(seen)] for name, seen in tiles.items()}
    return ordered, lengths


@pytest.mark.parametrize(("batch_size", "threads"), [(1, 1), (7, 3), (64, 2)])
def test_tiles_arrive_in_order_and_batches_are_full(catalogue, batch_size, threads):
    jobs = list(make_jobs(catalogue))
    tiles, lengths = gather(catalogue, jobs, batch_size=batch_size, threads=threads)
    total = sum(len(job.corners) for job in jobs)
    assert lengths[:-1] == [batch_size] * (total // batch_size - (total % batch_size == 0))
    assert sum(lengths) == total
    for job in jobs:
        if len(job.corners) == 0:
            assert job.row.slide_id == "bb"
            continue
        with catalogue.open_slide(job.row.slide_id) as slide:
            alone = [read_tile(slide, x, y, size_px=32, mpp=1.0) for x, y in job.corners.tolist()]
        found = np.stack(tiles[job.row.slide_id]).transpose(0, 2, 3, 1)
        np.testing.assert_array_equal(found, np.stack(alone))


class Reading:
    """Stands for ``start_tiles``: notes who read, and breaks what a test wants broken."""

    def __init__(self, breaks=lambda slide, windows: None):
        self.breaks, self.read = breaks, []

    def __call__(self, slide, windows, *, colour):
        pending = start_tiles(slide, windows, colour=colour)

        def read():
            self.read.append((slide.path, len(windows), threading.current_thread().name))
            broken = self.breaks(slide, windows)
            return pending.read() if broken is None else broken

        return SimpleNamespace(read=read)


def test_a_tile_that_fails_costs_its_slide_alone(catalogue, monkeypatch):
    def breaks_on_b(slide, windows):
        if slide.path.endswith("b.tif"):
            time.sleep(0.02)  # so that the reader has the time to see that the slide is torn
            return [SlideError(slide.path, "torn.")]
        return None

    reading = Reading(breaks_on_b)
    monkeypatch.setattr("anlage.embedding.read_ahead.start_tiles", reading)
    monkeypatch.setattr("anlage.embedding.read_ahead.BLOCK_PX", 32)  # a block is a tile
    jobs = list(make_jobs(catalogue))
    tiles, _ = gather(catalogue, jobs, batch_size=4)
    reasons = {job.row.slide_id: job.reason for job in jobs}
    assert reasons.pop("b") == "torn."
    assert set(reasons.values()) == {None}
    for job in jobs:
        if not job.reason and len(job.corners):
            assert len(tiles[job.row.slide_id]) == len(job.corners)
    assert len([path for path, *_ in reading.read if path.endswith("b.tif")]) < len(jobs[1].corners)


def test_a_slide_that_cannot_be_opened_is_refused_alone(catalogue, monkeypatch):
    def opens(self, slide_id):
        if slide_id == "b":
            raise FileNotFoundError(2, "gone", "b.tif")
        return original(self, slide_id)

    original = type(catalogue).open_slide
    monkeypatch.setattr(type(catalogue), "open_slide", opens)
    jobs = list(make_jobs(catalogue))
    gather(catalogue, jobs, batch_size=4)
    reasons = {job.row.slide_id: job.reason for job in jobs}
    assert "gone" in reasons.pop("b")
    assert set(reasons.values()) == {None}


def test_neighbours_are_read_together_whatever_the_batch(catalogue, monkeypatch):
    reading = Reading()
    monkeypatch.setattr("anlage.embedding.read_ahead.start_tiles", reading)
    monkeypatch.setattr("anlage.embedding.read_ahead.BLOCK_PX", 64)  # two by two tiles
    jobs = list(make_jobs(catalogue))
    gather(catalogue, jobs, batch_size=3)
    assert {n for _, n, _ in reading.read} <= {1, 2, 3, 4}
    assert max(n for _, n, _ in reading.read) == 4
    assert sum(n for _, n, _ in reading.read) == sum(len(job.corners) for job in jobs)


def test_a_block_of_tiles_that_overlap_is_bounded(catalogue, monkeypatch):
    reading = Reading()
    monkeypatch.setattr("anlage.embedding.read_ahead.start_tiles", reading)
    monkeypatch.setattr("anlage.embedding.read_ahead.MOST_TILES", 7)
    jobs = list(make_jobs(catalogue))
    gather(catalogue, jobs, batch_size=64)
    assert max(n for _, n, _ in reading.read) == 7
    assert sum(n for _, n, _ in reading.read) == sum(len(job.corners) for job in jobs)


def test_reading_runs_ahead_but_not_away(catalogue, monkeypatch):
    reading = Reading()
    monkeypatch.setattr("anlage.embedding.read_ahead.start_tiles", reading)
    monkeypatch.setattr("anlage.embedding.read_ahead.BLOCK_PX", 32)
    with TileReadAhead(catalogue, SPEC, batch_size=5, threads=2) as reader:
        batches = reader.batches(make_jobs(catalogue))
        next(batches)
        for _ in range(2000):
            if len(reading.read) == 15:
                break
            time.sleep(0.01)
        time.sleep(0.05)
        assert len(reading.read) == 15  # three batches, one of them in use
        assert all(name.startswith("anlage-embed") for *_, name in reading.read)
        batches.close()


def test_every_thread_has_a_block_to_read_whatever_the_batch(catalogue, monkeypatch):
    together = threading.Barrier(4)

    def meets_the_others(slide, windows):
        together.wait(60)

    monkeypatch.setattr("anlage.embedding.read_ahead.start_tiles", Reading(meets_the_others))
    monkeypatch.setattr("anlage.embedding.read_ahead.BLOCK_PX", 64)  # two by two tiles
    with TileReadAhead(catalogue, SPEC, batch_size=1, threads=4) as reader:
        batches = reader.batches(make_jobs(catalogue, n_slides=1))
        assert len(next(batches).pixels_B3SS) == 1  # four blocks were read at once
        together.abort()
        batches.close()


def test_an_error_that_is_no_slides_fault_is_not_swallowed(catalogue, monkeypatch):
    def breaks(slide, windows):
        raise ZeroDivisionError

    monkeypatch.setattr("anlage.embedding.read_ahead.start_tiles", Reading(breaks))
    with pytest.raises(ZeroDivisionError):
        gather(catalogue, make_jobs(catalogue), batch_size=4)


def test_native_tiles_are_decoded_once_for_a_block(catalogue, monkeypatch):
    decoded = []

    def noted(self, number, *arguments, **settings):
        decoded.append((id(self), number))
        return decode(self, number, *arguments, **settings)

    decode = TiledPicture.decode
    monkeypatch.setattr(TiledPicture, "decode", noted)
    jobs = list(make_jobs(catalogue))
    gather(catalogue, jobs, batch_size=3)
    n_tiles = sum(len(job.corners) for job in jobs)
    assert 0 < len(decoded) == len(set(decoded)) < n_tiles


def test_no_slide_stays_open_when_the_consumer_gives_up(catalogue, monkeypatch):
    opened, go_on = [], threading.Event()
    open_slide = type(catalogue).open_slide

    def noted(self, slide_id):
        opened.append(open_slide(self, slide_id))
        return opened[-1]

    def wait(slide, windows):
        assert go_on.wait(60)

    monkeypatch.setattr(type(catalogue), "open_slide", noted)
    monkeypatch.setattr("anlage.embedding.read_ahead.start_tiles", Reading(wait))

    def give_up():
        with TileReadAhead(catalogue, SPEC, batch_size=4, threads=1) as reader:
            reader._threads.submit(go_on.wait, 60)  # the blocks are opened, and not yet read
            for job in make_jobs(catalogue):
                reader._start(job, np.arange(len(job.corners))[:2], growing=deque())
            deadline = time.monotonic() + 60
            while len(opened) < 4 and time.monotonic() < deadline:
                time.sleep(0.01)
            threading.Timer(0.1, go_on.set).start()
            raise KeyError

    with pytest.raises(KeyError):
        give_up()
    assert len(opened) >= 4
    assert all(slide._is_closed for slide in opened)
