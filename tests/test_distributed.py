"""Joining the processes of a job: what one of them is refused before it waits for the others."""

from __future__ import annotations

import pytest
import torch

from anlage.distributed import process_group
from anlage.errors import DistributedError


def test_a_rank_without_a_gpu_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "7"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "3")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    told = "rank 7 of 8: is number 3 of its machine, which has 2 GPUs. Start 2 there"
    with pytest.raises(DistributedError, match=told), process_group("auto"):
        pass
