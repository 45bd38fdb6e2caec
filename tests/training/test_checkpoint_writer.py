"""What writing a checkpoint beside training may not do to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import filesystem

from anlage.training.checkpoint import newest_checkpoint
from anlage.training.checkpoint_writer import CheckpointWriter


def test_writing_waits_for_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is CUDA torch takes a loader that waits for the stream of the training."""

    def refuse(*_: object, **__: object) -> None:
        msg = "the copies are on the CPU already"
        raise AssertionError(msg)

    monkeypatch.setattr(filesystem, "_OverlappingCpuLoader", refuse)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with CheckpointWriter(tmp_path, keep=1) as writer:
        writer.save({"student": {"w": torch.ones(3)}}, step=1, provenance={})
    saved = newest_checkpoint(tmp_path)
    assert saved is not None
    assert torch.equal(saved.read_whole()["student"]["w"], torch.ones(3))
