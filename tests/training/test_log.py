"""The metrics file: one line a step, also after a resume and a crash in mid-line."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from anlage.errors import CheckpointError
from anlage.training import log as metrics_log
from anlage.training.log import MetricsLog, read_metrics
from anlage.training.trackers import Trackers


def test_rows_come_back_and_nan_is_null(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, first_step=0) as log:
        log.write(0, {"loss": 2.5})
        log.write(1, {"loss": float("nan"), "lr": float("inf")})
    rows = read_metrics(log.path)
    assert rows == [{"step": 0, "loss": 2.5}, {"step": 1, "loss": None, "lr": None}]


def test_resume_drops_the_steps_done_again(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, first_step=0) as log:
        for step in range(7):
            log.write(step, {"loss": float(step)})
    with MetricsLog(tmp_path, first_step=5) as log:
        log.write(5, {"loss": 50.0})
    assert [(r["step"], r["loss"]) for r in read_metrics(log.path)][-2:] == [(4, 4.0), (5, 50.0)]


def test_a_last_line_cut_by_a_crash_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "loss": 1.0}\n{"step": 1, "lo')
    assert read_metrics(path) == [{"step": 0, "loss": 1.0}]


@pytest.mark.parametrize(
    "broken", [b'{"step": 0', b"7", b'{"loss": 1.0}', b'{"step": "0"}', b"\xff\x00"]
)
def test_a_broken_line_before_the_last_is_refused(tmp_path: Path, broken: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\n' + broken + b'\n{"step": 1}\n')
    with pytest.raises(CheckpointError, match=r"metrics.jsonl: line 2 needs .*Delete that line"):
        read_metrics(path)
    with pytest.raises(CheckpointError, match="line 2 needs"):
        MetricsLog(tmp_path, first_step=1)


def test_tensorboard_is_written_where_installed(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, first_step=0) as log:
        log.write(0, {"loss": 1.0})
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_a_tensorboard_that_does_not_open_stops_no_run(tmp_path: Path, caplog) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    with MetricsLog(tmp_path, first_step=0) as log:
        log.write(0, {"loss": 1.0})
    assert "tensorboard could not be opened; metrics.jsonl has everything:" in caplog.text
    assert read_metrics(log.path) == [{"step": 0, "loss": 1.0}]


class Closing(Trackers):
    """Trackers that tell whether they were closed."""

    is_closed = False

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def fill_the_disk() -> Iterator[Callable[[], None]]:
    """A limit on file size stands in for a full disk: the write fails in the same place."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_trackers_are_closed_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fill_the_disk: Callable[[], None]
) -> None:
    trackers = Closing({})
    monkeypatch.setattr(metrics_log, "open_trackers", lambda *_, **__: trackers)
    log = MetricsLog(tmp_path, first_step=0)
    fill_the_disk()
    with pytest.raises(OSError, match="File too large"), log:
        log.write(0, {"loss": 1.0})
    assert trackers.is_closed


def test_a_disk_that_fills_up_hides_no_other_error(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fill_the_disk: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    trackers = Closing({})
    monkeypatch.setattr(metrics_log, "open_trackers", lambda *_, **__: trackers)
    log = MetricsLog(tmp_path, first_step=0)

    def write_and_fail() -> None:
        with contextlib.suppress(OSError):
            log.write(0, {"loss": 1.0})  # its row stays in the buffer
        raise CheckpointError(tmp_path, "the loss is not finite")

    fill_the_disk()
    with pytest.raises(CheckpointError, match="the loss is not finite"), log:
        write_and_fail()
    assert "metrics.jsonl could not be written to its end" in caplog.text
    assert trackers.is_closed
