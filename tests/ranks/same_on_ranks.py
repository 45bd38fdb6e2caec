"""What each of two ranks checks of objectives, optimiser and stream; the test starts it.

Every function gets ``Ranks``; what one process would find from all rows is its oracle.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from anlage.distributed import Ranks, process_group
from anlage.errors import CheckpointError
from anlage.objectives.kde import kde_loss
from anlage.objectives.koleo import koleo_loss
from anlage.objectives.prototypes import PrototypeScores, PrototypeTargets
from anlage.objectives.sinkhorn import sinkhorn_bias
from anlage.slides.catalogue import Catalogue
from anlage.tiles.quarantine import ErrorPolicy
from anlage.tiles.sampling import sampler_from_catalogue
from anlage.tiles.stream import TileStream
from anlage.training import checkpoint, distill, start
from anlage.training.checkpoint_writer import CheckpointWriter
from anlage.training.ema import update_teacher
from anlage.training.optimizer import clip_gradients
from anlage.training.stable_adamw import StableAdamW
from anlage.training.training_state import fresh_training
from micro_recipe import micro_config

torch.set_num_threads(1)


def own(rows: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    return rows.chunk(ranks.world_size)[ranks.rank]


def reductions(ranks: Ranks) -> None:
    """Sum, mean, log-sum-exp and rows against what both ranks' numbers give together."""
    both = torch.randn(2, 5, generator=torch.Generator().manual_seed(1)) * 50
    mine = both[ranks.rank].clone()
    torch.testing.assert_close(ranks.sum(mine.clone()), both.sum(dim=0))
    torch.testing.assert_close(ranks.mean(mine.clone()), both.mean(dim=0))
    torch.testing.assert_close(ranks.log_sum_exp(mine.clone()), both.logsumexp(dim=0))
    torch.testing.assert_close(ranks.rows(mine[None]), both)
    nothing = torch.full((3,), -torch.inf)
    assert ranks.log_sum_exp(nothing.clone()).isneginf().all()
    half = torch.where(torch.tensor(ranks.rank == 1), 2.0, -torch.inf)[None]
    assert ranks.log_sum_exp(half.clone()).tolist() == [2.0]
    assert ranks.objects(ranks.rank) == [0, 1]


def words_of_the_first(ranks: Ranks) -> None:
    """A value and a refusal of rank 0 reach all; the others do not run it."""
    ran = []
    assert ranks.from_main(lambda: ran.append(1) or "done") == "done"
    assert bool(ran) is ranks.is_main

    def refuse() -> None:
        msg = "run"
        raise CheckpointError(msg, "is full. Empty it.")

    with pytest.raises(CheckpointError, match=r"run: is full\. Empty it\."):
        ranks.from_main(refuse)


def spreading_terms(ranks: Ranks) -> None:
    """The mean over ranks of the gradients is that of the loss over all rows."""
    for loss in (kde_loss, koleo_loss):
        rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
        weight = torch.eye(4).add_(0.1).requires_grad_()
        wanted = loss(rows @ weight)
        (gradient,) = torch.autograd.grad(wanted, weight)
        found = loss(ranks.rows_with_gradient(own(rows, ranks) @ weight))
        (mine,) = torch.autograd.grad(found, weight)
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(ranks.mean(mine), gradient)
        assert gradient.abs().max() > 1e-3


def balanced_targets(ranks: Ranks) -> None:
    """Sinkhorn-Knopp and the log's statistics over ranks with unlike numbers of rows."""
    draw = torch.Generator().manual_seed(3)
    rows, axes = (torch.randn(n, 8, generator=draw) for n in (9, 12))
    for n_first in (9, 4, 0):  # the other rank has the rest
        mine = rows[:n_first] if ranks.is_main else rows[n_first:]
        whole = PrototypeScores(rows[None], axes, temperature=0.07)
        part = PrototypeScores(mine[None], axes, temperature=0.07, memory_mb=1e-3)
        bias = sinkhorn_bias(part, ranks=ranks)
        torch.testing.assert_close(bias, sinkhorn_bias(whole), rtol=1e-5, atol=1e-5)
    empty = PrototypeScores(rows[None, :0], axes, temperature=0.07)
    assert not sinkhorn_bias(empty, ranks=ranks).any()
    views = torch.randn(2, 6, 8, generator=draw)
    whole = PrototypeTargets(PrototypeScores(views, axes, temperature=0.1), torch.zeros(12))
    share = own(views.transpose(0, 1), ranks).transpose(0, 1)
    part = PrototypeTargets(PrototypeScores(share, axes, temperature=0.1), torch.zeros(12))
    for mine, wanted in zip(part.statistics(ranks), whole.statistics(), strict=True):
        torch.testing.assert_close(mine, wanted)


def sharded_steps(ranks: Ranks) -> None:
    """StableAdamW, clipping and the moving average on shards equal those on whole tensors."""
    mesh = init_device_mesh("cpu", (ranks.world_size,), mesh_dim_names=("shard",))

    def layers() -> nn.Sequential:
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(6, 7), nn.GELU(), nn.Linear(7, 1))

    whole, sharded, teacher, average = layers(), layers(), layers(), layers()
    for network in (sharded, average):
        fully_shard(network, mesh=mesh)
    optimizers = [StableAdamW(n.parameters(), lr=0.01, weight_decay=0.1) for n in (whole, sharded)]
    data = torch.randn(4, 6, generator=torch.Generator().manual_seed(6))
    for step in range(4):
        scale = 1000.0 if step == 2 else 1.0  # a spike, so that the rate is divided
        norms = []
        for network, optimizer in zip((whole, sharded), optimizers, strict=True):
            optimizer.zero_grad()
            rows = data if network is whole else own(data, ranks)
            (network(rows).square().mean() * scale).backward()
            norms.append(clip_gradients({"all": network}, max_norm=None)["all"])
            optimizer.step()
        torch.testing.assert_close(norms[1], norms[0], rtol=1e-5, atol=1e-6)
        update_teacher(teacher, whole, momentum=0.9)
        update_teacher(average, sharded, momentum=0.9)
    for one, other in ((whole, sharded), (teacher, average)):
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(b.full_tensor(), a, rtol=1e-5, atol=1e-6)


def one_quarantine(ranks: Ranks, catalogue: Path, journal: Path) -> None:
    """Read errors of both ranks count together, and a slide leaves both from the same step."""
    slides = Catalogue.open(catalogue)  # one of its files is gone

    def stream(path: Path | None) -> TileStream:
        sampler = sampler_from_catalogue(
            slides, seed=0, size_px=32, batch_size=4, magnifications={1.0: 1.0}, min_tissue=0.4
        )
        policy = ErrorPolicy("resample", 3)
        return TileStream(slides, sampler, threads=1, errors=policy, journal=path)

    with stream(None if not ranks.is_main else journal) as shared:
        mine = list(shared.batches(0, 24, ranks=ranks))
        held = shared.quarantined
    with stream(None) as alone:
        whole = list(alone.batches(0, 24))
        wanted = alone.quarantined
    assert held == wanted
    assert held
    half = slice(2 * ranks.rank, 2 * ranks.rank + 2)
    for part, batch in zip(mine, whole, strict=True):
        np.testing.assert_array_equal(part.g, batch.g[half])
        assert torch.equal(part.pixels, batch.pixels[half])


def begun_from_another_run(ranks: Ranks, folder: Path) -> None:
    """Rank 0 hashes the files and the weights; both begin with them, or both refuse them."""
    source, device = folder / "source", torch.device("cpu")
    if ranks.is_main:
        config = micro_config("seed=3")
        old = fresh_training(config, source, {}, device=device)
        with CheckpointWriter(source / "checkpoints", keep=1) as writer:
            made_by = {"config": config.model_dump(mode="json")}
            writer.save(old.state(), step=1, provenance=made_by)
    dist.barrier()
    hashed: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in (
            *((checkpoint, "facts_of"), (start, "weights_sha256"), (distill, "weights_sha256")),
        ):
            plain = getattr(owner, name)
            patch.setattr(owner, name, lambda x, f=plain: hashed.append(f.__name__) or f(x))
        for key in ("init", "distill"):
            hashed.clear()
            record: dict[str, Any] = {}
            config = micro_config(f"{key}.run={source}")
            new = fresh_training(config, folder, record, device=device, ranks=ranks)
            assert set(hashed) == ({"facts_of", "weights_sha256"} if ranks.is_main else set())
            told = record["init" if key == "init" else "distilled_from"]
            assert ranks.objects(told) == [told] * 2
            network = new.student if key == "init" else new.guide.with_heads
            weights = torch.cat([t.detach().flatten() for t in network.state_dict().values()])
            both = ranks.rows(weights[None])
            assert torch.equal(both[0], both[1])
            assert key != "init" or told["step"] == 1
        (source / "checkpoints" / "step-00000001" / "index.json").write_text("{}")
        dist.barrier()
        with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
            start.networks_of_run(source, ranks=ranks)


def main() -> None:
    catalogue, folder = Path(sys.argv[1]), Path(sys.argv[2])
    with process_group("cpu", timeout_s=60) as ranks:
        assert ranks.world_size == 2
        reductions(ranks)
        words_of_the_first(ranks)
        spreading_terms(ranks)
        balanced_targets(ranks)
        sharded_steps(ranks)
        one_quarantine(ranks, catalogue, folder / "quarantine.jsonl")
        begun_from_another_run(ranks, folder)
        dist.barrier()
        sys.stdout.write("all equal")


if __name__ == "__main__":
    main()
