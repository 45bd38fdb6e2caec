"""Files are whole or absent: on errors, on kill -9, on a full disk."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from anlage.files import replace_whole, write_json_whole, write_text_whole


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text_whole(path, "old")

    def fail() -> None:
        with replace_whole(path) as beside:
            beside.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert path.read_text() == "old"
    assert [f.name for f in tmp_path.iterdir()] == ["a.txt"]


def test_folders_are_made(tmp_path: Path) -> None:
    write_json_whole(tmp_path / "x" / "y" / "z.json", {"é": 1})
    assert (tmp_path / "x" / "y" / "z.json").read_text() == '{\n  "é": 1\n}\n'


def test_nan_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json_whole(tmp_path / "a.json", {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_kill_nine_never_shows_half_a_file(tmp_path: Path) -> None:
    program = (
        "import sys; from anlage.files import write_text_whole\n"
        "for n in range(10**6):\n"
        "    write_text_whole(sys.argv[1], str(n % 10) * 2_000_000)\n"
        "    print(n, flush=True)\n"
    )
    path = tmp_path / "a.txt"
    writer = subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    for _ in range(5):
        writer.stdout.readline()
        assert len(set(path.read_text())) == 1
        assert path.stat().st_size == 2_000_000
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert len(set(path.read_text())) == 1
    assert path.stat().st_size == 2_000_000


def test_a_full_disk_is_an_error_and_keeps_the_old_file(tmp_path: Path) -> None:
    """A limit on file size stands in for a full disk: the write fails in the same place."""
    program = (
        "import resource, signal, sys; from anlage.files import write_text_whole\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_text_whole(sys.argv[1], 'x' * 5000)\n"
    )
    path = tmp_path / "a.txt"
    path.write_text("old")
    run = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "File too large" in run.stderr
    assert path.read_text() == "old"
    assert [f.name for f in tmp_path.iterdir()] == ["a.txt"]
