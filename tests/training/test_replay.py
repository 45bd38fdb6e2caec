"""A step that went wrong comes back from disk as it was; a full disk hides no other error."""

from __future__ import annotations

import contextlib
import json
import os
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from anlage.errors import CheckpointError
from anlage.provenance import versions
from anlage.training.forensics import first_non_finite
from anlage.training.replay import load_replay, save_replay

PIXELS = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
BATCH = {
    "pixels": PIXELS.contiguous(memory_format=torch.channels_last),
    "g": torch.tensor([7, 8]),
}
FACTS = {
    "terms": {"dino": torch.tensor(torch.nan), "kde": np.float32(0.5)},
    "per_tile": torch.tensor([1.0, torch.inf]),
    "tiles": [{"slide_id": "a", "corner": (3, np.int64(4))}],
    "lowest": -torch.inf,
    "device": torch.device("cpu"),
    "none": None,
    "ok": True,
}


def save(folder: Path, **changes):
    given = {"step": 123, "tensors": BATCH, "facts": FACTS, "state": {"w": torch.ones(3)}}
    return save_replay(folder, **(given | changes))


def test_everything_comes_back(tmp_path: Path) -> None:
    saved = save(tmp_path)
    assert saved.folder == tmp_path / "non_finite" / "step-00000123"
    assert saved.faults == {}
    assert str(saved) == f"the step is saved for replay in {saved.folder}"
    assert sorted(f.name for f in saved.folder.iterdir()) == [
        *("batch.safetensors", "facts.json", "state.pt"),
    ]
    replay = load_replay(saved.folder)
    assert replay.step == 123
    assert replay.versions == versions()
    assert torch.equal(replay.tensors["pixels"], PIXELS)
    assert torch.equal(replay.tensors["g"], BATCH["g"])
    assert torch.equal(replay.state["w"], torch.ones(3))
    assert replay.facts == {
        "terms": {"dino": "nan", "kde": 0.5},
        "per_tile": [1.0, "inf"],
        "tiles": [{"slide_id": "a", "corner": [3, 4]}],
        "lowest": "-inf",
        "device": "cpu",
        "none": None,
        "ok": True,
    }


def test_a_replayed_step_fails_again_in_the_same_place(tmp_path: Path) -> None:
    def network() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

    def finding(net: nn.Sequential, x: torch.Tensor):
        return first_non_finite({"student": net}, lambda: net(x).sum().backward())

    broken = network()
    with torch.no_grad():
        broken[1].weight.fill_(3e38)
    x = torch.ones(2, 4)
    found = finding(broken, x)
    saved = save(
        tmp_path, tensors={"x": x}, facts={"finding": found}, state={"student": broken.state_dict()}
    )
    replay, fresh = load_replay(saved.folder), network()
    assert replay.facts["finding"]["name"] == found.name == "student.1"
    fresh.load_state_dict(replay.state["student"])
    assert finding(fresh, replay.tensors["x"]) == found


@contextlib.contextmanager
def files_no_larger_than(n_bytes: int):
    """A limit on file size stands in for a full disk: the write fails in the same place."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("limit", "kept"),
    [
        (100, []),
        (5_000, ["facts.json"]),
        (50_000, ["batch.safetensors", "facts.json"]),
    ],
)
def test_a_full_disk_costs_the_largest_files_and_is_told(
    tmp_path: Path, limit: int, kept: list[str]
) -> None:
    tensors = {"pixels": torch.zeros(20_000, dtype=torch.uint8)}
    with files_no_larger_than(limit):
        saved = save(tmp_path, tensors=tensors, state={"w": torch.zeros(100_000)})
    assert f"the step could not be saved whole in {saved.folder}" in str(saved)
    assert "state.pt: " in str(saved)
    assert sorted(f.name for f in saved.folder.iterdir()) == kept
    if kept:
        replay = load_replay(saved.folder)
        assert replay.state is None
        assert (replay.tensors is None) == (len(kept) == 1)


def test_a_file_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "non_finite").write_text("in the way")
    saved = save(tmp_path)
    assert list(saved.faults) == ["facts.json", "batch.safetensors", "state.pt"]
    assert "could not be saved whole" in str(saved)


def test_nothing_of_an_earlier_attempt_is_mixed_in(tmp_path: Path) -> None:
    save(tmp_path)
    unsaved = save(tmp_path, state={"w": lambda: None})  # cannot be pickled
    assert list(unsaved.faults) == ["state.pt"]
    assert load_replay(unsaved.folder).state is None


@pytest.mark.parametrize("name", ["facts.json", "batch.safetensors", "state.pt"])
@pytest.mark.parametrize("damage", ["cut", "rubbish", "empty"])
def test_damage_is_refused_with_its_file(tmp_path: Path, name: str, damage: str) -> None:
    path = save(tmp_path).folder / name
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "rubbish": b"{x", "empty": b""}[damage])
    with pytest.raises(CheckpointError, match=name):
        load_replay(path.parent)


def test_other_folders_and_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="Name a folder such as"):
        load_replay(tmp_path)
    (tmp_path / "facts.json").write_text(json.dumps({"format": "replay/9"}))
    with pytest.raises(CheckpointError, match="needs format 'replay/1'; got 'replay/9'"):
        load_replay(tmp_path)


def test_no_code_runs_from_a_replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Evil:
        def __reduce__(self):
            return (os.system, ("touch pwned",))

    monkeypatch.chdir(tmp_path)
    folder = save(tmp_path, state={"x": Evil()}).folder
    with pytest.raises(CheckpointError, match="more than tensors and plain values"):
        load_replay(folder)
    assert not Path("pwned").exists()
