"""One rank of a job that is looked at whole, and then with one fault after the other.

``python check_ranks.py FOLDER``, on two ranks; rank 0 prints one JSON object: the findings of each.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

from anlage import samples
from anlage.bench.io_report import IoSettings
from anlage.distributed import Ranks, process_group
from anlage.doctor.findings import Finding, of_all_ranks
from anlage.doctor.job import JobCheck, examine_job
from anlage.doctor.network import clocks, network
from anlage.doctor.shared_folder import shared_folder

CPU = torch.device("cpu")


class Lying(Ranks):
    """Ranks of which the last adds one to what all of them summed."""

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return super().sum(tensor).add_(self.rank == self.world_size - 1)


def job(folder: Path, rank: int) -> dict[str, list[Finding]]:
    """The whole examination: of a job that is well, then of one whose rank 1 is not."""
    sample = str(samples.slides_folder() / "hodgkin__HE.tiff")
    reading = IoSettings(mpp=1.0, tile_px=64, n=64, threads=1, rounds=1)
    asked = JobCheck(
        device="cpu",
        timeout_s=20,
        run=folder / "run",
        slides=[sample],
        rate=1.0,
        reading=reading,
        n_bytes=1 << 20,
    )
    well = examine_job(asked)
    assert well.speaks == (rank == 0)
    if rank == 1:
        other = folder / "numpy-0.0.1.dist-info"
        other.mkdir()
        (other / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 0.0.1\n")
        sys.path.insert(0, str(folder))
        from anlage import provenance

        provenance._version.cache_clear()
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, limit[1]))
    too_much = JobCheck(
        device="cpu", timeout_s=20, slides=[sample], rate=1e9, reading=reading, n_bytes=1 << 20
    )
    return {"well": well.findings, "unlike": examine_job(too_much).findings}


def faults(folder: Path, rank: int) -> dict[str, list[Finding]]:
    """One check each, with a fault that it must find."""
    found: dict[str, list[Finding]] = {}
    with process_group("cpu", timeout_s=20) as ranks:
        ahead_s = 5.0 * rank
        found["clock"] = list(clocks(ranks, clock=lambda: time.time() + ahead_s))
        lying = Lying(rank, 2, background=ranks.background)
        found["wrong sum"] = list(network(lying, CPU, n_bytes=1 << 12))
        own = folder / f"disk-{rank}"
        (own / "run").mkdir(parents=True)
        os.chdir(own)  # the same name on every rank, and not the same folder
        found["own disks"] = list(
            shared_folder(ranks, Path("run"), patience_s=0.5, n_bytes=1 << 12)
        )
        (own / "half").mkdir() if rank == 0 else None
        found["no folder"] = list(
            shared_folder(ranks, Path("half"), patience_s=0.5, n_bytes=1 << 12)
        )
        by_rank = {name: ranks.objects(findings) for name, findings in found.items()}
        found = {name: of_all_ranks(findings) for name, findings in by_rank.items()}
    return found


def main() -> None:
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    found = job(folder, rank) | faults(folder, rank)
    if rank == 0:
        told = {name: [asdict(finding) for finding in findings] for name, findings in found.items()}
        (folder / "found.json").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main()
