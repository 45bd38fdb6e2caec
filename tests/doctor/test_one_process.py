"""What the doctor of a job says to a process that was started alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from anlage.doctor.job import JobCheck, examine_job


def test_one_process_looks_at_what_it_can(tmp_path: Path) -> None:
    report = examine_job(JobCheck(device="cpu", run=tmp_path / "runs" / "a", n_bytes=1 << 12))
    told = {finding.name: finding for finding in report.findings}
    assert report.speaks
    assert told["process group"].state == "missing"
    assert "torchrun --nproc-per-node N -m anlage doctor" in told["process group"].told
    assert told["seen by all"].told.startswith(f"{tmp_path}: written")
    assert not {"all_reduce", "clocks"} & told.keys()
    assert not list(tmp_path.iterdir())


def test_options_of_a_job_need_the_job() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "anlage", "doctor", "--rate", "5"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert "need --distributed" in run.stderr
