"""Checkpoints: what is saved comes back, damage is found, a killed writer leaves no half file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from anlage.errors import CheckpointError
from anlage.training.checkpoint import load_newest_checkpoint, save_checkpoint

PROVENANCE = {"config": {"seed": 1}}


def save(folder: Path, step: int, *, keep: int = 2) -> Path:
    state = {"weights": torch.full((1000,), float(step)), "step": step}
    return save_checkpoint(folder, state, step=step, provenance=PROVENANCE, keep=keep)


def test_newest_comes_back(tmp_path: Path) -> None:
    save(tmp_path, 10)
    save(tmp_path, 20)
    loaded = load_newest_checkpoint(tmp_path)
    assert loaded is not None
    step, state, provenance = loaded
    assert step == 20
    assert torch.equal(state["weights"], torch.full((1000,), 20.0))
    assert provenance == PROVENANCE


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert load_newest_checkpoint(tmp_path / "missing") is None


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step, keep=2)
    assert sorted(f.name for f in tmp_path.iterdir()) == [
        *("step-00000003.json", "step-00000003.pt", "step-00000004.json", "step-00000004.pt"),
    ]


def test_what_a_killed_run_left_half_written_is_removed(tmp_path: Path) -> None:
    for name in (".step-00000001.pt.0123abcd.part", ".step-00000001.json.0123abcd.part"):
        (tmp_path / name).write_bytes(b"half")
    save(tmp_path, 2)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["step-00000002.json", "step-00000002.pt"]


@pytest.mark.parametrize("damage", ["truncated", "bit", "empty", "gone"])
def test_damage_falls_back_to_the_one_before_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    content = bytearray(newest.read_bytes())
    if damage == "truncated":
        newest.write_bytes(content[: len(content) // 2])
    elif damage == "bit":
        content[len(content) // 2] ^= 1
        newest.write_bytes(content)
    elif damage == "empty":
        newest.write_bytes(b"")
    else:
        newest.unlink()
    loaded = load_newest_checkpoint(tmp_path)
    assert loaded is not None
    assert loaded[0] == 1
    assert "step-00000002.pt" in caplog.text
    assert "trying the checkpoint before it" in caplog.text


def test_all_damaged_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 1).write_bytes(b"x")
    with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
        load_newest_checkpoint(tmp_path)


def test_a_checkpoint_without_its_description_does_not_count(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2).with_suffix(".json").unlink()
    loaded = load_newest_checkpoint(tmp_path)
    assert loaded is not None
    assert loaded[0] == 1


def test_no_code_runs_from_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle that would run code is refused by weights_only, whatever its hash says."""

    monkeypatch.chdir(tmp_path)

    class Evil:
        def __reduce__(self):
            return (os.system, ("touch pwned",))

    save_checkpoint(tmp_path, {"x": Evil()}, step=1, provenance=PROVENANCE, keep=1)
    with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
        load_newest_checkpoint(tmp_path)
    assert not Path("pwned").exists()


@pytest.mark.slow
def test_kill_nine_while_writing_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    program = (
        "import sys, torch; from pathlib import Path\n"
        "from anlage.training.checkpoint import save_checkpoint\n"
        "state = {'w': torch.zeros(3_000_000)}\n"
        "for step in range(1, 100_000):\n"
        "    save_checkpoint(Path(sys.argv[1]), state, step=step, provenance={}, keep=2)\n"
        "    print(step, flush=True)\n"
    )
    for pause_s in (0.0, 0.013, 0.031):
        writer = subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        for _ in range(3):
            said = int(writer.stdout.readline())
        time.sleep(pause_s)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        loaded = load_newest_checkpoint(tmp_path)
        assert loaded is not None
        assert loaded[0] >= said
        for left in tmp_path.iterdir():
            left.unlink()
