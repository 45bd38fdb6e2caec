import threading
import time

import numpy as np
import pytest

from anlage.embedding.read_ahead import TileReadAhead
from anlage.embedding.slide_plan import SlideJob, tiles_of
from anlage.errors import SlideError
from anlage.slides.levels import read_tile
from anlage.tiles.spec import TileSpec

SPEC = TileSpec(size_px=32, mpp=1.0, stride_px=32, min_tissue=0.25)


def make_jobs(catalogue, n_slides=5):
    for row in catalogue.rows()[:n_slides]:
        corners = tiles_of(catalogue, row, SPEC)
        yield SlideJob(row, corners, np.empty((len(corners), 1), np.float32))


def gather(catalogue, jobs, *, batch_size, threads=2):
    """{slide_id: its tiles in order}, and the length of each batch."""
    tiles, lengths = {}, []
    with TileReadAhead(catalogue, SPEC, batch_size=batch_size, threads=threads) as reader:
        for batch in reader.batches(jobs):
            lengths.append(len(batch.pixels_B3SS))
            assert sum(p.slots.stop - p.slots.start for p in batch.pieces) == lengths[-1]
            for piece in batch.pieces:
                seen = tiles.setdefault(piece.job.row.slide_id, [])
                assert piece.rows.start == len(seen)
                seen.extend(batch.pixels_B3SS[piece.slots].numpy())
    return tiles, lengths


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


def test_a_tile_that_fails_costs_its_slide_alone(catalogue, monkeypatch):
    reads = []

    def breaks_on_b(slide, x, y, *, size_px, mpp):
        reads.append(slide.path)
        n_reads = reads.count(slide.path)
        if slide.path.endswith("b.tif") and n_reads == 3:
            raise SlideError(slide.path, "torn.")
        if slide.path.endswith("b.tif") and n_reads > 3:
            time.sleep(0.05)  # so that the reader has the time to see that the slide is torn
        return read_tile(slide, x, y, size_px=size_px, mpp=mpp)

    monkeypatch.setattr("anlage.embedding.read_ahead.read_tile", breaks_on_b)
    jobs = list(make_jobs(catalogue))
    tiles, _ = gather(catalogue, jobs, batch_size=4)
    reasons = {job.row.slide_id: job.reason for job in jobs}
    assert reasons.pop("b") == "torn."
    assert set(reasons.values()) == {None}
    for job in jobs:
        if not job.reason and len(job.corners):
            assert len(tiles[job.row.slide_id]) == len(job.corners)
    assert len([p for p in reads if p.endswith("b.tif")]) < len(jobs[1].corners)


def test_reading_runs_ahead_but_not_away(catalogue, monkeypatch):
    reads = []

    def counted(*where, **how):
        reads.append(threading.get_ident())
        return read_tile(*where, **how)

    monkeypatch.setattr("anlage.embedding.read_ahead.read_tile", counted)
    with TileReadAhead(catalogue, SPEC, batch_size=5, threads=2) as reader:
        batches = reader.batches(make_jobs(catalogue))
        next(batches)
        for _ in range(200):
            if len(reads) == 15:
                break
            time.sleep(0.01)
        time.sleep(0.05)
        assert len(reads) == 15  # three batches, one of them in use
        assert threading.get_ident() not in reads
        batches.close()


def test_an_error_that_is_no_slides_fault_is_not_swallowed(catalogue, monkeypatch):
    def breaks(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr("anlage.embedding.read_ahead.read_tile", breaks)
    with pytest.raises(ZeroDivisionError):
        gather(catalogue, make_jobs(catalogue), batch_size=4)
