"""Checkpoints: what is saved comes back, damage is found, nothing of a stranger's runs."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import pickle
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from anlage.distributed import ALONE, Ranks
from anlage.errors import CheckpointError
from anlage.training.checkpoint import SavedCheckpoint, facts_of, newest_checkpoint
from anlage.training.checkpoint_writer import CheckpointWriter

PROVENANCE = {"config": {"seed": 1, "mean": [0.5, 0.5]}}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool)
WHOLE = (".metadata", "__0_0.distcp", "index.json")


def state_of(seed: int) -> dict[str, Any]:
    """All that a run holds: names with dots, scalars, an empty tensor, views and several dtypes."""
    draw = torch.Generator().manual_seed(seed)
    weights = {f"blocks.{i}.attn": torch.randn(8, 6, generator=draw) for i in range(3)}
    return {
        "student": weights,
        "teacher": {name: tensor.T[1:] for name, tensor in weights.items()},  # not contiguous
        "optimizer": {
            name: {"exp_avg": torch.randn(8, 6, generator=draw), "step": torch.tensor(float(seed))}
            for name in weights
        },
        "centers": {
            str(dtype): torch.randn(5, generator=draw).mul(9).to(dtype) for dtype in DTYPES
        },
        "gram": {"none": torch.empty(0, 3)},
    }


def flat(state: dict[str, Any], prefix: str = "") -> dict[str, torch.Tensor]:
    """An oracle of flattening, recursive."""
    found: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}|")
        else:
            found[f"{prefix}{key}"] = value
    return found


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    mine, theirs = flat(one), flat(other)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


def save(folder: Path, *steps: int, keep: int = 2) -> None:
    with CheckpointWriter(folder, keep=keep) as writer:
        for step in steps:
            writer.save(state_of(step), step=step, provenance=PROVENANCE)


def newest(folder: Path) -> SavedCheckpoint:
    found = newest_checkpoint(folder)
    assert found is not None
    return found


def described(*steps: int) -> list[str]:
    """Names of a folder that holds these checkpoints and nothing else."""
    return [f"step-{step:08d}{suffix}" for step in steps for suffix in ("", ".json")]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_newest_comes_back_bit_by_bit(tmp_path: Path) -> None:
    save(tmp_path, 10, 20)
    found = newest(tmp_path)
    assert (found.step, found.provenance) == (20, PROVENANCE)
    assert_same(found.read_whole(), state_of(20))
    filled = {part: dict(inner) for part, inner in state_of(1).items()}
    held = flat(filled)
    found.load_into(filled)
    assert_same(filled, state_of(20))
    assert all(tensor is held[name] for name, tensor in flat(filled).items())  # in place


def test_shapes_and_single_parts_are_told(tmp_path: Path) -> None:
    save(tmp_path, 3)
    found = newest(tmp_path)
    assert found.shapes()["optimizer.blocks.2.attn.exp_avg"] == torch.Size([8, 6])
    assert found.shapes()["optimizer.blocks.2.attn.step"] == torch.Size([])
    assert len(found.shapes()) == len(flat(state_of(3)))
    wanted = {k: state_of(3)[k] for k in ("centers", "gram")}
    assert_same(found.read_whole("centers", "gram"), wanted)
    with pytest.raises(CheckpointError, match="needs 'guide'; got centers, gram, optimizer, stud"):
        found.read_whole("student", "guide")


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "missing") is None


def test_tools_of_torch_read_it_too(tmp_path: Path) -> None:
    """Another program that reads the format, through ``.metadata``."""
    save(tmp_path, 1)
    dcp_to_torch_save(tmp_path / "step-00000001", tmp_path / "whole.pt")
    assert_same(torch.load(tmp_path / "whole.pt", weights_only=True), state_of(1))


def test_nothing_of_the_machine_is_in_it(tmp_path: Path) -> None:
    save(tmp_path / "a", 1)
    save(tmp_path / "b", 1)
    for name in WHOLE:
        one, other = ((tmp_path / run / "step-00000001" / name).read_bytes() for run in "ab")
        assert one == other
        assert str(tmp_path).encode() not in one


def test_what_changes_after_save_returns_is_not_written(tmp_path: Path) -> None:
    state = {"student": {"w": torch.zeros(3_000_000)}, "centers": {"c": torch.zeros(2)}}
    with CheckpointWriter(tmp_path, keep=3) as writer:
        for step in (1, 2, 3):
            writer.save(state, step=step, provenance={})
            for _ in range(3):
                state["student"]["w"].add_(1)
            state["centers"]["c"].add_(1)
    for step in (1, 2, 3):
        found = SavedCheckpoint(tmp_path / f"step-{step:08d}", step, {}).read_whole()
        assert found["student"]["w"].unique().tolist() == [3.0 * (step - 1)]
        assert found["centers"]["c"].tolist() == [step - 1] * 2


def test_memory_of_copies_follows_the_state(tmp_path: Path) -> None:
    """A Gram teacher that comes, a tensor that goes, others of another size or dtype."""
    before = {"a": {"x": torch.ones(3), "y": torch.ones(2), "z": torch.ones(5)}}
    after = {
        "a": {"x": torch.ones(3).double() / 3, "y": torch.ones(4)},
        "gram": {"w": torch.ones(1)},
    }
    with CheckpointWriter(tmp_path, keep=1) as writer:
        writer.save(before, step=1, provenance={})
        writer.save(after, step=2, provenance={})
        copied = sum(copy.nbytes for copy in writer._copies.values())
    assert copied == 3 * 8 + 4 * 4 + 1 * 4
    assert_same(newest(tmp_path).read_whole(), after)


def test_only_the_newest_are_kept_and_leftovers_go(tmp_path: Path) -> None:
    (tmp_path / "step-00000001").mkdir()  # of a run that was killed as it saved
    (tmp_path / "step-00000001" / "__0_0.distcp").write_bytes(b"half")
    (tmp_path / ".step-00000001.json.0123abcd.part").write_bytes(b"half")
    save(tmp_path, 2, 3, 4, 5, keep=2)
    assert names(tmp_path) == described(4, 5)


def test_damaged_later_ones_do_not_push_out_good_ones(tmp_path: Path) -> None:
    """A run that goes on from step 1, since 5 is damaged, keeps what it saves."""
    save(tmp_path, 1, 5)
    (tmp_path / "step-00000005" / "__0_0.distcp").write_bytes(b"")
    assert newest(tmp_path).step == 1
    save(tmp_path, 2, keep=1)
    assert names(tmp_path) == described(2)


def test_the_same_step_is_saved_again(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "step-00000001" / "__0_0.distcp").write_bytes(b"")
    save(tmp_path, 1)
    assert_same(newest(tmp_path).read_whole(), state_of(1))


@pytest.mark.gpu
def test_a_state_on_a_gpu_is_copied_at_once_and_comes_back(tmp_path: Path) -> None:
    """Through page-locked memory, which is kept; what changes it next does not reach the file."""

    def on_gpu(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: on_gpu(inner) for name, inner in value.items()}
        return value.cuda()

    state = on_gpu(state_of(1))
    large = state["student"]["large"] = torch.full((2**24,), 1.0, device="cuda")
    memory: list[set[int]] = []
    with CheckpointWriter(tmp_path, keep=2) as writer:
        for step in (1, 2):
            large.fill_(step)
            writer.save(state, step=step, provenance=PROVENANCE)
            for tensor in flat(state).values():
                tensor.zero_()  # as the next step would, while the file is being written
            copies = writer._copies.values()
            assert all(copy.is_pinned() for copy in copies if copy.numel())
            memory.append({copy.data_ptr() for copy in copies if copy.numel()})
            writer.wait()
            wanted = on_gpu(state_of(1))
            for name, tensor in flat(state).items():
                if name in flat(wanted):
                    tensor.copy_(flat(wanted)[name])
    assert memory[0] == memory[1]
    found = newest(tmp_path)
    read = found.read_whole()
    assert read["student"].pop("large").unique().tolist() == [2.0]
    assert_same(read, state_of(1))
    filled = on_gpu(state_of(3))
    filled["student"]["large"] = torch.zeros_like(large)
    found.load_into(filled)
    assert all(tensor.is_cuda for tensor in flat(filled).values())
    assert filled["student"].pop("large").unique().tolist() == [2.0]
    assert_same(filled, on_gpu(state_of(1)))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("damage", [cut, flip, empty, Path.unlink])
def test_damage_falls_back_to_the_one_before_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: Callable[[Path], None]
) -> None:
    save(tmp_path, 1, 2)
    damage(tmp_path / "step-00000002" / name)
    assert newest(tmp_path).step == 1
    assert_same(newest(tmp_path).read_whole(), state_of(1))
    assert "step-00000002: is damaged" in caplog.text
    assert name in caplog.text
    assert "trying the checkpoint before it" in caplog.text


@pytest.mark.parametrize("damage", [cut, empty])
def test_a_damaged_description_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    save(tmp_path, 1, 2)
    damage(tmp_path / "step-00000002.json")
    assert newest(tmp_path).step == 1
    assert "step-00000002: is damaged" in caplog.text


def test_a_checkpoint_without_its_description_does_not_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1, 2)
    (tmp_path / "step-00000002.json").unlink()
    assert newest(tmp_path).step == 1
    assert "step-00000002 was not written to its end; it is passed over" in caplog.text


def test_all_damaged_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    cut(tmp_path / "step-00000001" / "__0_0.distcp")
    cut(tmp_path / "step-00000002" / "index.json")
    with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
        newest_checkpoint(tmp_path)


def test_another_format_is_refused_whatever_lies_before_it(tmp_path: Path) -> None:
    save(tmp_path, 1)
    old = {"format": "tile-checkpoint/1", "step": 2, "sha256": "0", "provenance": {}}
    (tmp_path / "step-00000002.json").write_text(json.dumps(old))
    with pytest.raises(CheckpointError, match=r"needs format 'tile-checkpoint/2'; got .*/1'\. Ano"):
        newest_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s["student"].pop("blocks.1.attn"), r"blocks\.1\.attn to be absent; got torch"),
        (lambda s: s["student"].update(new=torch.zeros(2)), r"student\.new to be .*; got none"),
        (
            lambda s: s["centers"].update({"torch.int64": torch.zeros(5)}),
            r"centers\.torch\.int64 to be torch\.float32 \(5,\); got torch\.int64 \(5,\)",
        ),
        (
            lambda s: s["student"].update({"blocks.1.attn": torch.zeros(6, 8)}),
            r"attn to be torch\.float32 \(6, 8\); got torch\.float32 \(8, 6\)",
        ),
        (lambda s: s.pop("optimizer"), r"exp_avg to be absent; .*\(and 5 more\)"),
    ],
)
def test_another_state_is_refused_by_name(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], told: str
) -> None:
    save(tmp_path, 1)
    state = state_of(2)
    change(state)
    with pytest.raises(CheckpointError, match=told):
        newest(tmp_path).load_into(state)


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path, keep=1) as writer:
        with pytest.raises(TypeError, match=r"student\.n = 3"):
            writer.save({"student": {"n": 3}}, step=1, provenance={})
        two = {"a": {"b.c": torch.zeros(1)}, "a.b": {"c": torch.zeros(1)}}
        with pytest.raises(ValueError, match="two of 'a.b.c'"):
            writer.save(two, step=1, provenance={})
        with pytest.raises(TypeError, match="not JSON"):
            writer.save({"a": torch.zeros(1)}, step=1, provenance={"x": object()})
    assert not tmp_path.joinpath("step-00000001").exists()
    with pytest.raises(ValueError, match="keep >= 1; got 0"):
        CheckpointWriter(tmp_path, keep=0)
    with pytest.raises(ValueError, match="background group"):
        CheckpointWriter(tmp_path, keep=1, ranks=Ranks(rank=0, world_size=2))


class Evil:
    """What a stranger's pickle would do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


def sealed(path: Path) -> None:
    """Give changed files the sizes and hashes that a stranger would give them."""
    description = path.with_name(f"{path.name}.json")
    content = json.loads(description.read_text())
    content["files"] = {f.name: facts_of(f).model_dump() for f in path.iterdir()}
    description.write_text(json.dumps(content))


def test_no_code_runs_from_the_pickle_of_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``.metadata`` is never read: what it would run does not run, and all is there without it."""
    monkeypatch.chdir(tmp_path)
    save(tmp_path, 1)
    path = tmp_path / "step-00000001"
    (path / ".metadata").write_bytes(pickle.dumps(Evil()))
    sealed(path)
    assert_same(newest(tmp_path).read_whole(), state_of(1))
    filled = state_of(2)
    newest(tmp_path).load_into(filled)
    assert not Path("pwned").exists()
    pickle.loads((path / ".metadata").read_bytes())  # it would have
    assert Path("pwned").exists()


@pytest.mark.parametrize("legacy", [True, False])
def test_no_code_runs_from_the_file_of_a_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, legacy: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    with CheckpointWriter(tmp_path, keep=1) as writer:
        writer.save({"student": {"w": torch.zeros(3)}}, step=1, provenance={})
    path = tmp_path / "step-00000001"
    evil = path / "__0_0.distcp"
    torch.save(Evil(), evil, _use_new_zipfile_serialization=not legacy)
    change_index(path, at=0, n_bytes=evil.stat().st_size)
    with pytest.raises(CheckpointError, match="cannot be read: Weights only load failed"):
        newest(tmp_path).read_whole()
    with pytest.raises(CheckpointError, match="cannot be read: Weights only load failed"):
        newest(tmp_path).load_into({"student": {"w": torch.zeros(3)}})
    assert not Path("pwned").exists()


def change_index(path: Path, *, of_tensor: dict[str, Any] | None = None, **of_piece: Any) -> None:
    index = json.loads((path / "index.json").read_text())
    index["tensors"][0].update(of_tensor or {})
    index["tensors"][0]["pieces"][0].update(of_piece)
    (path / "index.json").write_text(json.dumps(index))
    sealed(path)


@pytest.mark.parametrize(
    "change",
    [
        {"file": "../../secret"},
        {"file": "/etc/passwd"},
        {"file": "__1_0.distcp"},
        {"shape": [2]},
        {"offset": [1]},
        {"at": -1},
        {"of_tensor": {"dtype": "load"}},
        {"of_tensor": {"shape": [10**15]}},
        {"of_tensor": {"path": []}},
        {"of_tensor": {"path": ["student", "w", "inner"]}},
        {"of_tensor": {"format": "other"}},
    ],
)
def test_an_index_that_makes_no_sense_is_damage(tmp_path: Path, change: dict[str, Any]) -> None:
    with CheckpointWriter(tmp_path, keep=1) as writer:
        state = {"student": {"v": torch.zeros(3), "w": torch.zeros(3)}}
        writer.save(state, step=1, provenance={})
    change_index(tmp_path / "step-00000001", **change)
    with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
        newest_checkpoint(tmp_path)


def test_an_index_reaches_no_file_outside_its_folder(tmp_path: Path) -> None:
    """Not even one that the description tells of, with its right hash."""
    with CheckpointWriter(tmp_path, keep=1) as writer:
        writer.save({"student": {"w": torch.zeros(3)}}, step=1, provenance={})
    torch.save(torch.ones(3), tmp_path / "secret")
    secret = {"file": "../secret", "at": 0, "n_bytes": (tmp_path / "secret").stat().st_size}
    change_index(tmp_path / "step-00000001", **secret)
    description = tmp_path / "step-00000001.json"
    content = json.loads(description.read_text())
    content["files"]["../secret"] = facts_of(tmp_path / "secret").model_dump()
    description.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
        newest_checkpoint(tmp_path)


def test_a_tensor_larger_than_memory_is_refused(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path, keep=1) as writer:
        writer.save({"student": {"w": torch.zeros(3)}}, step=1, provenance={})
    change_index(tmp_path / "step-00000001", of_tensor={"shape": [10**17]}, shape=[10**17])
    with pytest.raises(CheckpointError, match="does not fit into memory"):
        newest(tmp_path).read_whole()


@contextlib.contextmanager
def files_at_most(n_bytes: int) -> Iterator[None]:
    """Let no file grow further, as on a disk that is full; works without any right."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("n_elements", "limit"), [(10, 100), (10, 20_000), (10**5, 50_000)])
def test_an_error_comes_out_at_the_next_save_and_leaves_no_part(
    tmp_path: Path, n_elements: int, limit: int
) -> None:
    """As it writes small tensors through a buffer, as it ends a file, or in the midst of one."""
    state = {"student": {str(i): torch.zeros(n_elements) for i in range(20)}}
    with CheckpointWriter(tmp_path, keep=2) as writer:
        writer.save({"student": {"w": torch.ones(1)}}, step=1, provenance={})
        writer.wait()
        with files_at_most(limit):
            writer.save(state, step=2, provenance={})
            with pytest.raises(OSError, match="File too large") as caught:
                writer.save(state, step=3, provenance={})
        assert caught.value.errno == errno.EFBIG
        assert names(tmp_path) == described(1)
        writer.save(state, step=3, provenance={})  # there is room again
    assert newest(tmp_path).step == 3


END = "of training"


def test_an_error_that_ends_the_context_is_not_hidden_by_one_of_the_save(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (  # noqa: PT012 - the context is what is tested
        pytest.raises(KeyError, match=END),
        files_at_most(100),
        CheckpointWriter(tmp_path, keep=2) as writer,
    ):
        writer.save({"student": {"w": torch.zeros(1000)}}, step=1, provenance={})
        raise KeyError(END)
    assert "the last checkpoint was not saved: [Errno 27]" in caplog.text


def test_a_full_disk_is_told_as_such_and_the_checkpoint_before_it_stays(tmp_path: Path) -> None:
    """A real one: mounting needs root; the tests with a limit on files stand for it elsewhere."""
    disk = tmp_path / "disk"
    disk.mkdir()
    make = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(make, check=False).returncode:
        pytest.skip("cannot mount a small disk")
    try:
        with CheckpointWriter(disk / "run", keep=2) as writer:
            writer.save({"student": {"w": torch.ones(1000)}}, step=1, provenance={})
            writer.save({"student": {"w": torch.ones(10**6)}}, step=2, provenance={})
            with pytest.raises(OSError, match="No space left") as caught:
                writer.wait()
        assert caught.value.errno == errno.ENOSPC
        assert newest(disk / "run").step == 1
        assert names(disk / "run") == described(1)
        assert shutil.disk_usage(disk).free > 10**6  # the part was taken away
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_kill_nine_in_the_midst_of_a_save_leaves_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The half one is named, and gone after the next save."""
    program = (
        "import sys, torch; from pathlib import Path\n"
        "from anlage.training.checkpoint_writer import CheckpointWriter\n"
        "torch.set_num_threads(1)\n"
        "writer = CheckpointWriter(Path(sys.argv[1]), keep=2)\n"
        "for step in range(1, 100_000):\n"
        "    state = {'w': torch.full((4_000_000,), float(step))}\n"
        "    writer.save(state, step=step, provenance={})\n"
    )
    third = tmp_path / "step-00000003"
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) as writer:
        while not (third / "__0_0.distcp").exists():  # it is being written now
            assert writer.poll() is None
            time.sleep(0.001)
        writer.kill()
    assert not third.with_suffix(".json").exists()
    found = newest(tmp_path)
    assert found.step == 2
    assert found.read_whole()["w"].unique().tolist() == [2.0]
    assert f"{third} was not written to its end" in caplog.text
    save(tmp_path, 4, keep=2)
    assert names(tmp_path) == described(2, 4)


def test_ranks_alone_need_no_process_group(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        save(tmp_path, 1)
        assert newest_checkpoint(tmp_path, ranks=ALONE) is not None
    assert not torch.distributed.is_initialized()
    assert not caplog.records
