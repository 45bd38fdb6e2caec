"""What the processes of a job can do together, before hours of many GPUs are spent on it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from anlage.bench.io_report import IoSettings
from anlage.distributed import ALONE, Ranks, is_launched, process_group
from anlage.doctor.findings import Finding, State, of_all_ranks
from anlage.doctor.loading import loading
from anlage.doctor.machine import open_files
from anlage.doctor.network import clocks, network
from anlage.doctor.roll_call import roll_call
from anlage.doctor.shared_folder import shared_folder
from anlage.errors import DistributedError
from anlage.provenance import versions

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - looked at, nothing is written there
LITTLE_SHARED_MIB = 512  # containers begin with 64; NCCL takes some tens for each rank


@dataclass(frozen=True, kw_only=True, slots=True)
class JobCheck:
    """What is to be looked at.

    Attributes:
        device: ``auto``, ``cpu`` or ``cuda``.
        timeout_s: Longest that a rank waits for the others.
        run: Folder of the run on shared storage; None to leave it out.
        slides: Slides or a catalogue to read tiles from; empty to leave it out.
        rate: Tiles a second that the whole run needs.
        reading: Tiles that each rank reads, and its threads.
        n_bytes: Size of what is sent and written to measure rates.
    """

    device: str = "auto"
    timeout_s: float = 60.0
    run: Path | None = None
    slides: Sequence[str] = ()
    rate: float | None = None
    reading: IoSettings = field(default_factory=lambda: IoSettings(n=512, rounds=1))
    n_bytes: int = 1 << 26


@dataclass(frozen=True, slots=True)
class JobReport:
    """What was found, and who tells it.

    Attributes:
        findings: Those of all ranks; of this rank alone where they could not come together.
        speaks: Whether this process is to tell it: rank 0, or each one that lost the others.
    """

    findings: list[Finding]
    speaks: bool


def examine_job(asked: JobCheck) -> JobReport:
    """Look at everything that ranks need of each other; ends in bounded time if one is missing.

    Every process of the job calls it. Started alone it looks at what one process can.

    Args:
        asked: What is to be looked at.

    Returns:
        The findings, by part.
    """
    try:
        with _joined(asked) as (ranks, how):
            findings = ranks.objects([*how, *_findings(ranks, asked)])
            return JobReport(of_all_ranks(findings), speaks=ranks.is_main)
    except DistributedError as error:
        lost = Finding("rank", "process group", "broken", str(error))
        return JobReport([lost, *_limits()], speaks=True)


@contextmanager
def _joined(asked: JobCheck) -> Iterator[tuple[Ranks, list[Finding]]]:
    """The others, and how they were found."""
    if not is_launched():
        told = (
            "started alone; to check the ranks of a job together: "
            "torchrun --nproc-per-node N -m anlage doctor --distributed"
        )
        yield ALONE, [Finding("rank", "process group", "missing", told)]
        return
    began = time.perf_counter()
    with (
        roll_call(timeout_s=asked.timeout_s) as machines,
        process_group(asked.device, timeout_s=asked.timeout_s) as ranks,
    ):
        took_s = time.perf_counter() - began
        backend = _device(asked, ranks).type.replace("cuda", "NCCL").replace("cpu", "gloo")
        slowest = max(ranks.objects(took_s))
        told = (
            f"{ranks.world_size} ranks, machines: {len(set(machines))}; {backend}, formed in "
            f"{slowest:.1f} s"
        )
        yield ranks, [Finding("rank", "process group", "ok", told)]


def _findings(ranks: Ranks, asked: JobCheck) -> Iterator[Finding]:
    device = _device(asked, ranks)
    yield from _same_versions(ranks)
    if device.type == "cuda":
        yield Finding("rank", "GPU", "ok", torch.cuda.get_device_name(device))
    yield from _limits()
    if not ranks.is_alone:
        yield from network(ranks, device, n_bytes=asked.n_bytes)
        yield from clocks(ranks)
    if asked.run is not None:
        yield from shared_folder(
            ranks, asked.run, patience_s=asked.timeout_s / 4, n_bytes=asked.n_bytes
        )
    if asked.slides:
        yield from loading(ranks, asked.slides, asked.reading, rate=asked.rate)


def _device(asked: JobCheck, ranks: Ranks) -> torch.device:
    if asked.device != "cpu" and torch.cuda.is_available():
        return torch.device("cuda", ranks.local_rank)
    return torch.device("cpu")


def _same_versions(ranks: Ranks) -> Iterator[Finding]:
    """One finding for each package; broken where ranks differ."""
    own = versions()
    if torch.cuda.is_available():
        own["CUDA"] = torch.version.cuda or "none"
        own["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    told = ranks.objects(own)
    for name in dict.fromkeys(name for each in told for name in each):
        found = {each.get(name, "missing") for each in told}
        state: State = "ok" if len(found) == 1 else "broken"
        yield Finding("rank", name, state, own.get(name, "missing"))


def _limits() -> Iterator[Finding]:
    yield open_files()
    if SHARED_MEMORY.is_dir():
        free_mib = shutil.disk_usage(SHARED_MEMORY).free / 2**20
        if free_mib < LITTLE_SHARED_MIB:
            told = f"{free_mib:.0f} MiB free; NCCL needs more: --shm-size, or a volume in memory"
            yield Finding("machine", str(SHARED_MEMORY), "missing", told)
        else:
            yield Finding("machine", str(SHARED_MEMORY), "ok", f"{free_mib / 2**10:.0f} GiB free")
