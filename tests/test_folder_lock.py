"""A folder has one writer; its lock ends with the process."""

from __future__ import annotations

import errno
import fcntl
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from anlage.errors import AnlageError
from anlage.folder_lock import lock_folder

HOLD = (
    "import sys, time\n"
    "from anlage.folder_lock import lock_folder\n"
    "with lock_folder(sys.argv[1], held=RuntimeError('held')):\n"
    "    print('locked', flush=True)\n"
    "    time.sleep(60)\n"
)


@contextmanager
def held_by_another_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "locked\n"
        yield child
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    refusal = AnlageError(tmp_path, "another process has it")
    with held_by_another_process(tmp_path / "run") as child:
        with (
            pytest.raises(AnlageError, match="another process has it"),
            lock_folder(tmp_path / "run", held=refusal),
        ):
            pytest.fail("both hold it")
        child.send_signal(signal.SIGKILL)
        child.wait()
        with lock_folder(tmp_path / "run", held=refusal):
            assert (tmp_path / "run" / ".lock").exists()


def test_a_lock_is_free_again_after_its_block(tmp_path: Path) -> None:
    for _ in range(2):
        with lock_folder(tmp_path, held=RuntimeError("held")):
            pass
    with (
        lock_folder(tmp_path, held=RuntimeError("held")),
        pytest.raises(RuntimeError, match="held"),
        lock_folder(tmp_path, held=RuntimeError("held")),
    ):
        pytest.fail("held twice")


def test_where_nothing_can_be_locked_the_work_goes_on_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refuse)
        with lock_folder(tmp_path, held=RuntimeError("held")):
            assert "cannot be locked (No locks available)" in caplog.text
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "win32")
        with lock_folder(tmp_path, held=RuntimeError("held")):
            assert "Windows has no such lock" in caplog.text
