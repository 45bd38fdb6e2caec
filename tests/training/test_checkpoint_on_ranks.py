"""Checkpoints of two ranks: shards, replicas and mirrors; from two ranks to one and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from two_ranks import run

from anlage.training.checkpoint import newest_checkpoint
from anlage.training.checkpoint_writer import CheckpointWriter

PROGRAM = Path(__file__).with_name("checkpoint_on_ranks.py")


@pytest.mark.slow
def test_two_ranks_save_and_load_as_one(tmp_path: Path) -> None:
    """One launch for all that two ranks check; this process is the one rank before and after."""
    one = {"student": {"blocks.0": torch.randn(5, 2), "blocks.1": torch.randn(1)}}
    torch.save(one, tmp_path / "one.pt")
    with CheckpointWriter(tmp_path / "one", keep=1) as writer:
        writer.save(one, step=7, provenance={})
    said = run([str(PROGRAM), str(tmp_path)], timeout_s=90)
    assert all("all equal" in text for text in said)

    saved = newest_checkpoint(tmp_path / "two")
    assert saved is not None
    expected = torch.load(tmp_path / "two.pt")
    read = saved.read_whole()
    assert read.keys() == expected.keys()
    assert read["student"].keys() == expected["student"].keys()
    for name, tensor in expected["student"].items():
        assert torch.equal(read["student"][name], tensor)
        for moment, value in expected["optimizer"][name].items():
            assert torch.equal(read["optimizer"][name][moment], value)
    pieces = {t.name: len(t.pieces) for t in saved.index.tensors}
    assert pieces["student.0.weight"] == 2
    assert pieces["centers.cls"] == pieces["optimizer.0.weight.step"] == 1
