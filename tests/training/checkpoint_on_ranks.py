"""What each of two ranks checks of checkpoints; the test starts it."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from anlage.distributed import Ranks, process_group
from anlage.errors import CheckpointError
from anlage.training.checkpoint import newest_checkpoint
from anlage.training.checkpoint_writer import CheckpointWriter

torch.set_num_threads(1)
MIB = 2**20


@contextlib.contextmanager
def raised(kind: type[Exception], told: str) -> Iterator[list[Exception]]:
    """Expect an error on this rank, and have it in the list after."""
    caught: list[Exception] = []
    try:
        yield caught
    except kind as error:
        caught.append(error)
    assert caught, f"nothing was raised; expected {kind.__name__}"
    assert re.search(told, str(caught[0])), caught[0]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().clone()


def whole_state(state: dict[str, Any]) -> dict[str, Any]:
    return {k: whole_state(v) if isinstance(v, dict) else whole(v) for k, v in state.items()}


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, dict):
            assert_same(value, other[name])
        else:
            assert value.dtype == other[name].dtype, name
            assert torch.equal(value, other[name]), name


def fsdp_state(*, seed: int) -> dict[str, Any]:
    """A network of odd sizes, sharded by FSDP2, after a step of AdamW; centres are everybody's."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 1))
    fully_shard(network[0])
    fully_shard(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    network(torch.randn(4, 5)).sum().backward()
    optimizer.step()
    moments = {n: dict(optimizer.state[p]) for n, p in network.named_parameters()}
    centers = {"cls": torch.randn(11), "patch": torch.randn(13).double()}
    return {"student": network.state_dict(), "optimizer": moments, "centers": centers}


def blank(state: dict[str, Any]) -> dict[str, Any]:
    """The same names, lying as they do, of zeros."""
    return {
        k: blank(v) if isinstance(v, dict) else torch.zeros_like(v.detach())
        for k, v in state.items()
    }


def sharded_by_fsdp2(ranks: Ranks, folder: Path) -> None:
    """Saved by two: loaded by two as it lies, and as plain replicas; it changes at once."""
    state = fsdp_state(seed=3)
    before = whole_state(state)
    with CheckpointWriter(folder / "two", keep=2, ranks=ranks) as writer:
        for step in (1, 2):
            writer.save(state, step=step, provenance={"step": step})
            for tensor in (*state["student"].values(), *state["centers"].values()):
                tensor.detach().add_(1)
            total = ranks.sum(torch.ones(1))  # the loop's own collectives go on meanwhile
            assert total.item() == 2
    found = newest_checkpoint(folder / "two", ranks=ranks)
    assert found is not None
    assert (found.step, found.provenance) == (2, {"step": 2})
    for part in ("student", "centers"):
        for tensor in before[part].values():
            tensor.add_(1)
    again = blank(fsdp_state(seed=4))
    assert isinstance(again["student"]["0.weight"], DTensor)
    found.load_into(again, ranks=ranks)
    assert_same(whole_state(again), before)
    plain = blank(before)
    found.load_into(plain, ranks=ranks)
    assert_same(plain, before)
    assert_same(found.read_whole(), before)
    if ranks.is_main:
        torch.save(before, folder / "two.pt")


def one_writes_what_all_hold(ranks: Ranks, folder: Path) -> None:
    """Replicas are written once, by turns: half each, plain, mirrored or mirrored shards."""
    mesh = init_device_mesh("cpu", (2, 1))
    values = [torch.full((MIB // 4,), float(i)) for i in range(4)]
    lying = {
        "plain": values,
        "mirrored": [distribute_tensor(v, mesh, [Replicate(), Replicate()]) for v in values],
        "hsdp": [distribute_tensor(v, mesh, [Replicate(), Shard(0)]) for v in values],
    }
    for name, tensors in lying.items():
        state = {"student": {str(i): tensor for i, tensor in enumerate(tensors)}}
        with CheckpointWriter(folder / name, keep=1, ranks=ranks) as writer:
            writer.save(state, step=1, provenance={})
            writer.wait()
            assert sum(copy.nbytes for copy in writer._copies.values()) == 2 * MIB
        files = [folder / name / "step-00000001" / f"__{rank}_0.distcp" for rank in (0, 1)]
        assert all(2 * MIB <= file.stat().st_size < 2.01 * MIB for file in files), name
        found = newest_checkpoint(folder / name, ranks=ranks)
        assert found is not None
        read = found.read_whole()["student"]
        assert all(torch.equal(read[str(i)], value) for i, value in enumerate(values))


def saved_by_one(ranks: Ranks, folder: Path) -> None:
    """What one process saved as plain tensors is loaded by two as shards."""
    expected = torch.load(folder / "one.pt")
    mesh = init_device_mesh("cpu", (2,))
    state = {
        part: {n: distribute_tensor(torch.zeros_like(t), mesh, [Shard(0)]) for n, t in ts.items()}
        for part, ts in expected.items()
    }
    seen = folder / ("one" if ranks.is_main else "nowhere")  # what rank 0 finds is what counts
    found = newest_checkpoint(seen, ranks=ranks)
    assert found is not None
    found.load_into(state, ranks=ranks)
    assert state["student"]["blocks.0"].to_local().shape[0] in {3, 2}
    assert_same(whole_state(state), expected)


def errors_reach_all(ranks: Ranks, folder: Path) -> None:
    """A rank whose disk is full, or whose state is another one, is heard of by both."""
    state = {"student": {str(i): torch.ones(MIB // 8) for i in range(4)}}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with CheckpointWriter(folder / "full", keep=2, ranks=ranks) as writer:
        writer.save(state, step=1, provenance={})
        writer.wait()
        if ranks.rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (MIB // 2, before[1]))
        writer.save(state, step=2, provenance={})
        with raised(OSError, "File too large") as caught:
            writer.save(state, step=3, provenance={})
        assert isinstance(caught[0], OSError)
        assert caught[0].errno == errno.EFBIG
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        ranks.objects(None)
        left = sorted(path.name for path in (folder / "full").iterdir())
        assert left == ["step-00000001", "step-00000001.json"], left
        writer.save(state, step=3, provenance={})
    found = newest_checkpoint(folder / "full", ranks=ranks)
    assert found is not None
    assert found.step == 3
    other = {"student": {**blank(state)["student"], **({"5": torch.ones(1)} if ranks.rank else {})}}
    with raised(CheckpointError, "student.5"):
        found.load_into(other, ranks=ranks)


def damage_is_told_to_all(ranks: Ranks, folder: Path) -> None:
    """The file of rank 1 is cut: both go back to the one before, and end where there is none."""
    for step, answer in ((3, 1), (1, None)):
        ranks.objects(None)
        if ranks.is_main:
            file = folder / "full" / f"step-{step:08d}" / "__1_0.distcp"
            os.truncate(file, file.stat().st_size - 1)
        ranks.objects(None)
        if answer is None:
            with raised(CheckpointError, "every checkpoint is damaged"):
                newest_checkpoint(folder / "full", ranks=ranks)
        else:
            found = newest_checkpoint(folder / "full", ranks=ranks)
            assert found is not None
            assert found.step == answer


def main() -> None:
    folder = Path(sys.argv[1])
    with process_group("cpu", timeout_s=60) as ranks:
        for check in (
            sharded_by_fsdp2,
            one_writes_what_all_hold,
            saved_by_one,
            errors_reach_all,
            damage_is_told_to_all,
        ):
            check(ranks, folder)
            ranks.objects(None)
    sys.stdout.write("all equal")


if __name__ == "__main__":
    main()
