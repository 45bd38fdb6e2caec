"""The step on a GPU: it waits for nothing, and what is not finite changes nothing.

What needs no GPU of this is tested on the CPU by reading steps late, as a GPU's are.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from same_run import assert_same_run, before_steps
from torch._dynamo.utils import counters

from anlage.errors import TrainingError
from anlage.slides.catalogue import Catalogue
from anlage.training import step_views, tile_pretrain
from anlage.training.log import read_metrics
from anlage.training.tile_pretrain import pretrain_tiles
from micro_recipe import micro_config


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step is read after the next one was begun."""
    begin = tile_pretrain._Report.__init__

    def begun(self, *given) -> None:
        begin(self, *given)
        self._reads_late = True

    monkeypatch.setattr(tile_pretrain._Report, "__init__", begun)


def test_reading_late_changes_nothing(catalogue: Catalogue, tmp_path: Path, request) -> None:
    config = micro_config("steps=7", "checkpoint_every=3", "watch.every=2", "watch.pictures=false")
    pretrain_tiles(config, catalogue, tmp_path / "at-once", device="cpu")
    request.getfixturevalue("late")
    pretrain_tiles(config, catalogue, tmp_path / "late", device="cpu")
    assert_same_run(tmp_path / "at-once", tmp_path / "late")
    rows = read_metrics(tmp_path / "late" / "metrics.jsonl")
    assert ["watch_rankme" in row for row in rows] == [False, True] * 3 + [True]


@pytest.mark.parametrize("kind", ["adamw", "stable_adamw"])
@pytest.mark.usefixtures("late")
def test_what_follows_a_nan_before_it_is_read_changes_nothing(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The third step is not finite, the fourth is begun before anybody knows."""
    cut, launch, seen = step_views.views, tile_pretrain.launch_step, {}

    def poisoned(pixels, g, *, spec, seed):
        made = cut(pixels, g, spec=spec, seed=seed)
        if int(g[0]) == 8:
            made.local_crops[:] = float("nan")
        return made

    def launched(training, batch, *, wants_stop):
        pending = launch(training, batch, wants_stop=wants_stop)
        state = [training.student, training.teacher]
        tensors = [p.detach().clone() for network in state for p in network.parameters()]
        tensors += [center.clone() for center in training.centers.values()]
        moments = training.optimizer.state.values()
        tensors += [t.clone() for s in moments for name, t in s.items() if name != "step"]
        seen[pending.step] = tensors
        return pending

    monkeypatch.setattr(step_views, "views", poisoned)
    monkeypatch.setattr(tile_pretrain, "launch_step", launched)
    config = micro_config("steps=6", f"optimizer.kind={kind}", "optimizer.clip_norm=null")
    with pytest.raises(TrainingError, match="not finite at step 2"):
        pretrain_tiles(config, catalogue, tmp_path / "run", device="cpu")
    assert sorted(seen) == [0, 1, 2, 3]
    assert not all(torch.equal(a, b) for a, b in zip(seen[0], seen[1], strict=True))
    for step in (2, 3):
        assert all(torch.equal(a, b) for a, b in zip(seen[1], seen[step], strict=True))


@pytest.mark.gpu
def test_nothing_in_a_step_waits_for_the_gpu(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = tile_pretrain.launch_step

    def watched(training, batch, *, wants_stop):
        is_warm = training.step >= 2  # the first steps fill caches
        torch.cuda.set_sync_debug_mode("error" if is_warm else "default")
        try:
            return launch(training, batch, wants_stop=wants_stop)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(tile_pretrain, "launch_step", watched)
    assert pretrain_tiles(micro_config("steps=6"), catalogue, tmp_path, device="cuda").is_finished


@pytest.mark.gpu
def test_a_gpu_learns_what_the_cpu_learns(catalogue: Catalogue, tmp_path: Path) -> None:
    config = micro_config("steps=4", "precision=fp32", "model.stochastic_depth=0")
    for device in ("cpu", "cuda"):
        pretrain_tiles(config, catalogue, tmp_path / device, device=device)
    cpu, gpu = (read_metrics(tmp_path / device / "metrics.jsonl") for device in ("cpu", "cuda"))
    for here, there in zip(cpu, gpu, strict=True):
        assert there["loss"] == pytest.approx(here["loss"], rel=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("special", [(), ("accumulate=2",)], ids=["whole", "in parts"])
def test_cuda_graphs_learn_what_eager_steps_learn(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, special: tuple[str, ...]
) -> None:
    """And they are recorded in the second step, once and for all, with nothing left out."""
    torch.compiler.reset()
    counted, recorded = counters["inductor"], []
    counted.clear()
    inputs = "cudagraph_recorded_non_static_inputs"
    before_steps(monkeypatch, lambda *_: recorded.append(counted[inputs]))
    for name in ("none", "graphs"):
        config = micro_config("steps=20", "precision=fp32", *special, f"engine.compile={name}")
        pretrain_tiles(config, catalogue, tmp_path / name, device="cuda")
    eager, graphs = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("none", "graphs"))
    for here, there in zip(eager, graphs, strict=True):
        assert there["loss"] == pytest.approx(here["loss"], rel=1e-2)
    assert counted["cudagraph_skips"] == 0
    assert recorded[:22] == [0] * 22
    assert recorded[22] > 0
    assert len(set(recorded[22:])) == 1
