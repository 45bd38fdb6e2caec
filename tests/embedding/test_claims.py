from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from anlage.embedding.claims import SlideClaims, claims_on

HOLD = """
import sys
from pathlib import Path
from anlage.embedding.claims import SlideClaims
with SlideClaims(Path(sys.argv[1])) as claims:
    print(claims.take("a"), claims.take("b"), flush=True)
    sys.stdin.readline()
    claims.give_back("b")
    print("gave back b", flush=True)
    sys.stdin.readline()
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", HOLD, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(command, text=True, env=environment, **pipes)


def test_a_claim_keeps_other_processes_out_until_it_ends_even_by_kill(tmp_path):
    with hold(tmp_path) as other, SlideClaims(tmp_path) as claims:
        assert other.stdout.readline() == "True True\n"
        assert [claims.take(name) for name in "abc"] == [False, False, True]
        other.stdin.write("\n")
        other.stdin.flush()
        assert other.stdout.readline() == "gave back b\n"
        assert [claims.take(name) for name in "ab"] == [False, True]
        other.send_signal(signal.SIGKILL)
        other.wait(60)
        assert claims.take("a")


def test_one_process_may_claim_twice_and_the_file_stays_empty(tmp_path):
    with SlideClaims(tmp_path / "new") as claims:
        assert claims.take("a")
        assert claims.take("a")
        with claims.of_the_record():
            pass
    assert (tmp_path / "new" / ".claims").stat().st_size == 0


def test_without_locks_every_claim_is_granted_and_that_is_told_once(tmp_path, monkeypatch, caplog):
    def refuses(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.lockf", refuses)
    with SlideClaims(tmp_path) as claims:
        assert claims.take("a")
        assert claims.take("b")
        claims.give_back("a")
    assert len(caplog.records) == 1
    assert "No locks available" in caplog.text


def test_a_folder_that_cannot_be_made_is_an_error_at_once(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="file"):
        SlideClaims(tmp_path / "file" / "bags")


def test_at_a_url_every_claim_is_granted():
    with claims_on("s3://bags/study") as claims:
        assert claims.take("a")
        claims.give_back("a")
        with claims.of_the_record():
            assert claims.take("a")
