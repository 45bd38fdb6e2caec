"""The measurement of training: what it counts, that its parts are a step, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import islice, pairwise
from pathlib import Path
from types import ModuleType

import pytest
import torch
from typer.testing import CliRunner

from anlage.bench.train import _random_batches, measure_training
from anlage.bench.train_parts import _Stopwatch, parts_of_steps
from anlage.bench.train_report import Parts, TrainReport, TrainSettings
from anlage.cli.application import app
from anlage.errors import RecipeError
from anlage.provenance import machine
from anlage.recipe import load_recipe
from anlage.training.flops_rate import peak_tflops
from anlage.training.plan import plan_of
from anlage.training.tile_config import TilePretrainConfig
from anlage.training.train_step import launch_step
from anlage.training.training_state import fresh_training
from micro_recipe import MICRO, micro_config

ROOT = Path(__file__).parents[2]
SETTINGS = TrainSettings(overrides=MICRO, steps=3, warm_up=1, device="cpu")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> TrainReport:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANLAGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        return measure_training(SETTINGS)


def test_a_real_run_is_told_in_full(report: TrainReport) -> None:
    assert len(report.step_s) == 3
    assert report.n_apart == 3
    assert report.batch_size == 4
    assert report.tiles_per_s == pytest.approx(4 / sorted(report.step_s)[1])
    assert report.data_wait_share is not None
    assert 0 <= report.data_wait_share < 1
    per_tile = plan_of(micro_config()).stages[0].flops.total
    assert report.tflops * 1e12 * report.median_s == pytest.approx(4 * per_tile)
    assert report.device == machine()["cpu"]
    assert report.mfu is None  # no peak of a CPU is known
    assert report.memory.n_bytes > 50e6
    assert report.memory.of == "process, resident"


def test_every_part_takes_time(report: TrainReport) -> None:
    for name in Parts.__dataclass_fields__:
        assert getattr(report.parts, name) > 0, name


def test_parts_sum_to_the_steps_they_are_of() -> None:
    settings = TrainSettings(overrides=MICRO, steps=2, warm_up=1, device="cpu", source="tensors")
    began = time.perf_counter()
    report = measure_training(settings)
    took_s = time.perf_counter() - began
    assert 0 < report.parts.total * report.n_apart < took_s - sum(report.step_s)
    assert report.parts.total == pytest.approx(
        sum(getattr(report.parts, name) for name in Parts.__dataclass_fields__)
    )
    assert report.data_wait_share is None


def test_the_stopwatch_loses_no_time() -> None:
    watch = _Stopwatch(torch.device("cpu"))
    began = time.perf_counter()
    for part, seconds in (("data", 0.02), ("student", 0.05), ("heads", 0.03)):
        watch.turn(part)
        time.sleep(seconds)
    watch.turn("student", before="teacher")
    whole = time.perf_counter() - began
    assert watch.spent_s.total() == pytest.approx(whole, abs=5e-3)
    assert watch.spent_s["data"] >= 0.02
    assert watch.spent_s["student"] >= 0.05
    assert watch.spent_s["teacher"] >= 0.03  # not "heads": what ended was named otherwise
    assert "heads" not in watch.spent_s


def slowed(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, seconds: float) -> None:
    """Let a function take longer, by sleeping in it."""
    plain = getattr(owner, name)

    def slow(*args: object, **kwargs: object) -> object:
        time.sleep(seconds)
        return plain(*args, **kwargs)

    monkeypatch.setattr(owner, name, slow)


@pytest.mark.parametrize(
    ("owner", "name", "part"),
    [
        ("anlage.training.train_step", "cut_parts", "augment"),
        ("anlage.training.train_step", "clip_gradients", "optimiser"),
        ("anlage.training.train_step", "update_teacher", "optimiser"),
        ("anlage.training.step_loss", "dino_loss", "heads"),
        ("anlage.training.lesson", "sinkhorn_bias", "heads"),
    ],
)
def test_time_is_given_to_the_part_that_took_it(
    owner: str, name: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowed(monkeypatch, sys.modules[owner], name, 0.3)
    settings = TrainSettings(overrides=MICRO, steps=1, warm_up=1, device="cpu", source="tensors")
    parts = measure_training(settings).parts
    assert getattr(parts, part) >= 0.3
    assert getattr(parts, part) > 0.5 * parts.total


def test_steps_taken_apart_are_those_of_a_run(tmp_path: Path) -> None:
    """The same weights to the last bit, and parts in the order of the step."""
    told, weights = [], []
    for apart in (False, True):
        training = fresh_training(micro_config(), tmp_path, {}, device=torch.device("cpu"))
        batches = _random_batches(training)
        if apart:
            parts_of_steps(training, batches, 2)
        else:
            for batch in islice(batches, 2):
                launch_step(training, batch, begins=told.append).read()
        assert training.step == 2
        networks = (training.student, training.teacher)
        weights.append([p for network in networks for p in network.parameters()])
    assert told == ["augment", "heads", "optimiser", "rest"] * 2
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


class _SlowBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
        time.sleep(0.3)
        return gradient


@pytest.mark.parametrize(
    ("owner", "part"),
    [
        ("anlage.models.vit.VisionTransformer", "student"),
        ("anlage.models.projection_head.ProjectionHead", "heads"),
    ],
)
def test_a_backward_pass_is_given_to_whom_it_is_of(
    owner: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _, name = owner.rpartition(".")
    target = getattr(sys.modules[module], name)
    if part == "heads":
        plain_head = target.bottleneck_of
        monkeypatch.setattr(
            target, "bottleneck_of", lambda self, x: _SlowBackward.apply(plain_head(self, x))
        )
    else:
        block = sys.modules["anlage.models.vit"].Block
        plain_block = block.forward

        def forward(self: object, x: torch.Tensor, *args: object, **kwargs: object) -> object:
            return plain_block(self, _SlowBackward.apply(x), *args, **kwargs)

        monkeypatch.setattr(block, "forward", forward)
    settings = TrainSettings(overrides=MICRO, steps=1, warm_up=1, device="cpu", source="tensors")
    parts = measure_training(settings).parts
    assert getattr(parts, part) >= 0.3
    assert getattr(parts, part) > 0.5 * parts.total


@pytest.mark.gpu
@pytest.mark.parametrize("source", ["tensors", "slides"])
def test_a_gpu_is_measured(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its name and its own memory; the time that it works is given to the parts it works in."""
    monkeypatch.setenv("ANLAGE_CACHE", str(tmp_path))
    settings = TrainSettings(overrides=MICRO, steps=3, warm_up=2, device="cuda", source=source)
    report = measure_training(settings)
    assert report.device == torch.cuda.get_device_name()
    assert report.memory.of == "CUDA, allocated by torch"
    of_weights = 2 * 4 * plan_of(micro_config()).encoder_parameters
    total = torch.cuda.get_device_properties(0).total_memory
    assert of_weights < report.memory.n_bytes < total
    assert (report.data_wait_share is None) is (source == "tensors")
    assert (report.mfu is None) is (peak_tflops(report.device) is None)
    assert len(report.step_s) == 3
    for name in Parts.__dataclass_fields__:
        assert getattr(report.parts, name) > 0, name


@pytest.mark.gpu
def test_the_stopwatch_waits_for_the_gpu() -> None:
    """Work that was only asked for is not yet done; its time is that of the part that asked."""
    device = torch.device("cuda")
    matrix = torch.randn(4096, 4096, device=device)
    (matrix @ matrix).sum().item()  # warm
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    watch = _Stopwatch(device)
    watch.turn("student")
    begin.record()
    for _ in range(50):
        matrix @ matrix
    end.record()
    watch.turn("heads")
    watch.turn("rest")
    worked_s = begin.elapsed_time(end) / 1e3
    assert watch.spent_s["student"] >= 0.9 * worked_s
    assert watch.spent_s["heads"] < 0.5 * worked_s


def test_json_holds_all_of_it(report: TrainReport) -> None:
    told = report.as_json()
    again = json.loads(json.dumps(told, allow_nan=False))
    assert again["format"] == "bench-train/1"
    assert again["settings"]["recipe"] == "tiny"
    assert again["settings"]["overrides"] == list(MICRO)
    assert again["tiles_per_s"] == report.tiles_per_s
    assert Parts(**again["parts"]) == report.parts
    assert {"versions", "machine", "device", "how"} <= again.keys()


def test_the_table_says_what_was_measured(report: TrainReport) -> None:
    text = "\n".join(report.as_lines())
    assert f"{report.tiles_per_s:,.4g} tiles/s" in text
    for name in Parts.__dataclass_fields__:
        assert f"  {name}" in text


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"warm_up": 0}])
def test_no_steps_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"needs steps >= 1 and warm_up >= 1; got"):
        TrainSettings(**wrong)


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(RecipeError, match="no such recipe file"):
        measure_training(TrainSettings(recipe="tinny", device="cpu"))


def test_the_command_refuses_steps_and_slides_that_do_not_fit() -> None:
    run = CliRunner()
    assert run.invoke(app, ["bench", "train", "--steps", "0"]).exit_code == 2
    both = ["bench", "train", "--from", "tensors", "--slides", "a.svs"]
    assert run.invoke(app, both).exit_code == 2


def commands_of(model: str) -> list[list[str]]:
    bash = shutil.which("bash")
    assert bash is not None
    said = subprocess.run(
        [bash, str(ROOT / "benchmarks" / "gpu.sh"), model],
        env=os.environ | {"GPU_SH_DRY": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    return [shlex.split(line) for line in said.stdout.splitlines()]


def after(words: Sequence[str], option: str) -> list[str]:
    return [value for name, value in pairwise(words) if name == option]


@pytest.mark.parametrize(
    ("model", "millions"),
    # published sizes of the encoders; of H the SwiGLU form of Virchow2
    [
        *(("vit-s14", 22), ("vit-b14", 86), ("vit-l14", 303), ("vit-h14", 631), ("vit-g14", 1135)),
        *(("vit-h14-float8", 631), ("vit-g14-float8", 1135)),
    ],
)
def test_the_gpu_script_asks_for_what_the_recipe_knows(model: str, millions: int) -> None:
    commands = commands_of(model)
    assert [after(words, "--from") for words in commands] == [["tensors"], ["slides"]]
    for words in commands:
        (recipe,) = after(words, "--recipe")
        config = load_recipe(recipe, TilePretrainConfig, overrides=after(words, "--set"))
        assert (config.views.global_px, config.views.local_px, config.views.n_local) == (224, 98, 8)
        assert config.head.n_prototypes == 65_536
        assert config.precision == "bf16"
        assert config.engine.linears == ("float8" if model.endswith("float8") else "plain")
        plan = plan_of(config)
        assert plan.encoder_parameters / 1e6 == pytest.approx(millions, rel=0.02)
        assert plan.stages[0].memory.total < 75e9


def test_the_gpu_script_refuses_other_models() -> None:
    with pytest.raises(AssertionError, match="needs vit-s14"):
        commands_of("vit-x14")


@pytest.fixture
def gpu_row() -> ModuleType:
    path = ROOT / "benchmarks" / "gpu_row.py"
    spec = importlib.util.spec_from_file_location("gpu_row", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rows_go_below_each_other_in_their_section(
    gpu_row: ModuleType, report: TrainReport
) -> None:
    row = gpu_row.row_of("vit-s14", report.as_json(), date="2026-01-01")
    page = gpu_row.with_row("# Benchmarks\n\nText.\n", row)
    lines = page.splitlines()
    assert lines[-1] == row
    assert lines[-2].startswith("| ---")
    assert row.count("|") == lines[-2].count("|")
    later = gpu_row.with_row(page + "\n## Another\n\n| a |\n", row.replace("s14", "b14"))
    head, tail = later.split("\n\n## Another\n")
    assert head.splitlines()[-2:] == [row, row.replace("s14", "b14")]
    assert tail == "\n| a |\n"
