"""What the doctor finds out about the ranks of a job: real processes, with real faults."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import two_ranks

from anlage.doctor.findings import Finding, is_well

Found = dict[str, dict[tuple[str, str], Finding]]
pytestmark = pytest.mark.slow
QUICK = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("job")
    program = Path(__file__).with_name("check_ranks.py")
    two_ranks.run([str(program), str(folder)])
    told = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    assert not list(folder.rglob(".anlage-doctor-*")), "it leaves nothing behind"
    assert not (folder / "run").exists()
    return {
        name: {(each["part"], each["name"]): Finding(**each) for each in findings}
        for name, findings in told.items()
    }


def test_a_job_that_is_well(found: Found) -> None:
    well = found["well"]
    assert is_well(list(well.values())), well
    assert {part for part, _ in well} == {"rank", "machine", "link", "shared folder", "loader"}
    assert "2 ranks, machines: 1; gloo" in well["rank", "process group"].told
    assert well["rank", "torch"].told == torch.__version__.partition("+")[0]
    assert "every rank sees the others' files" in well["shared folder", "seen by all"].told
    assert "1 needed" in well["loader", "machine 0 (ranks 0-1)"].told


@pytest.mark.parametrize(("name", "share"), [("all_reduce", 1.0), ("all_gather", 0.5)])
def test_bus_bandwidth_is_what_two_ranks_send(found: Found, name: str, share: float) -> None:
    """Each of two ranks sends the whole sum's size once, and half of what is gathered."""
    told = found["well"]["link", name].told
    match = re.fullmatch(r"(\S+) MB in (\S+) ms: (\S+) GB/s bus bandwidth", told)
    assert match, told
    megabytes, milliseconds, rate = map(float, match.groups())
    assert megabytes == pytest.approx(2**20 / 1e6, abs=0.5)
    assert rate == pytest.approx(share * 2**20 / 1e6 / milliseconds, rel=0.1, abs=0.01)


def test_clocks_of_one_machine_agree(found: Found) -> None:
    assert found["well"]["rank", "clocks"].state == "ok"


def test_a_clock_that_is_ahead_is_named(found: Found) -> None:
    (clock,) = found["clock"].values()
    assert clock.state == "missing"
    assert "rank 1 most: 5.0 s ahead of it" in clock.told


def test_wrong_numbers_are_broken(found: Found) -> None:
    assert found["wrong sum"]["link", "all_reduce"].state == "broken"
    assert "wrong numbers on rank 1" in found["wrong sum"]["link", "all_reduce"].told
    assert found["wrong sum"]["link", "all_gather"].state == "ok"


def test_disks_of_each_rank_are_not_shared_storage(found: Found) -> None:
    (blind,) = [f for f in found["own disks"].values() if f.name == "seen by all"]
    assert blind.state == "broken"
    assert "ranks 0-1 did not see a file of another rank within 0.5 s" in blind.told


def test_a_folder_that_one_rank_does_not_have_is_told_by_rank(found: Found) -> None:
    (absent,) = found["no folder"].values()
    assert absent.state == "broken"
    assert "half: on rank 1 it is not there" in absent.told


def test_other_versions_and_limits_of_a_rank_are_told_by_rank(found: Found) -> None:
    numpy = found["unlike"]["rank", "numpy"]
    assert numpy.state == "broken"
    assert re.fullmatch(r"rank 0: 2\.\S+; rank 1: 0\.0\.1", numpy.told)
    assert found["unlike"]["rank", "torch"].state == "ok"
    files = found["unlike"]["machine", "open files"]
    assert files.state == "missing"
    assert "rank 1: 256; a run with many slides needs more: ulimit -n 4096" in files.told


def test_a_loader_that_is_too_slow_is_broken(found: Found) -> None:
    slow = found["unlike"]["loader", "machine 0 (ranks 0-1)"]
    assert slow.state == "broken"
    assert "1,000,000,000 needed. More --threads" in slow.told


def doctor(rank: int, *arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """The command as rank ``rank`` of two, the other of which never comes."""
    began = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-m", "anlage", "doctor", "--distributed", "--timeout", "1", *arguments],
        env=QUICK | two_ranks.environment(rank, 2, two_ranks.free_port()),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return run, time.monotonic() - began


def test_a_missing_rank_is_named_in_bounded_time() -> None:
    run, took_s = doctor(0, "--json")
    assert run.returncode == 1
    assert took_s < 30
    told = json.loads(run.stdout)
    assert not told["is_well"]
    first = told["findings"][0]
    assert (first["name"], first["state"]) == ("process group", "broken")
    assert "waited 1 s for the others; rank 1 did not come. Rank 0 came, from" in first["told"]


def test_rank_0_missing_is_told_by_the_others_in_bounded_time() -> None:
    run, took_s = doctor(1)
    assert run.returncode == 1
    assert took_s < 30
    assert "! process group" in run.stdout
    assert "cannot reach rank 0 at 127.0.0.1:" in run.stdout
    assert "frame #" not in run.stderr


def test_a_rank_that_dies_meanwhile_ends_the_others_with_a_message() -> None:
    dies = (
        "import os\nfrom anlage.doctor.roll_call import roll_call\n"
        "from anlage.distributed import process_group\n"
        "with roll_call(timeout_s=20), process_group('cpu', timeout_s=20): os._exit(9)\n"
    )
    port = two_ranks.free_port()
    lost = subprocess.Popen(
        [sys.executable, "-c", dies], env=QUICK | two_ranks.environment(1, 2, port)
    )
    stays = subprocess.run(
        [sys.executable, "-m", "anlage", "doctor", "--distributed", "--timeout", "20"],
        env=QUICK | two_ranks.environment(0, 2, port),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert lost.wait(timeout=10) == 9
    assert stays.returncode == 1
    assert "rank 0 of 2: lost the others" in stays.stdout


@pytest.mark.gpu
def test_nccl_carries_numbers_between_gpus(tmp_path: Path) -> None:
    ranks = torch.cuda.device_count()
    said = two_ranks.run(
        ["-m", "anlage", "doctor", "--distributed", "--run", str(tmp_path / "run")], n_ranks=ranks
    )
    assert f"{ranks} ranks, machines: 1; NCCL" in said[0]
    assert "all is well" in said[0]
