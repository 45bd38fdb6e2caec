"""``anlage pretrain slide``: runs, plans, refusals and exit codes, as a user meets them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from command_line import Anlage, command_line
from slide_runs import MICRO, write_bags, write_table

from anlage.training.log import read_metrics

SETS = [part for override in MICRO for part in ("--set", override)]


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bags(tmp_path_factory.mktemp("bags") / "bags")


@pytest.fixture
def pretrain(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Anlage]:
    """``anlage pretrain slide`` with the small recipe, or with ``sets``."""
    with command_line(monkeypatch, capsys) as anlage:

        def run(*options: object, sets: Sequence[str] = SETS):
            return anlage("pretrain", "slide", "--device", "cpu", *options, *sets)

        yield run


def test_a_run_from_the_command_line(pretrain: Anlage, bags: Path, tmp_path: Path) -> None:
    run, table = tmp_path / "run", write_table(tmp_path / "slides.csv")
    told = ("--bags", bags, "--run", run, "--watch", table, "--set", "watch.label=shifted")
    first = pretrain(*told)
    assert first.returncode == 0, first.stderr
    assert f"slide encoder: {run / 'encoder'}" in first.stdout.replace("\n", "")
    assert "watch_knn" in read_metrics(run / "metrics.jsonl")[1]
    again = pretrain(*told)
    assert again.returncode == 1
    assert "holds a run already" in again.stderr
    assert pretrain(*told, "--resume").returncode == 0
    assert json.loads((run / "encoder" / "config.json").read_text())["format"] == "slide-encoder/1"


def test_a_damaged_bag_is_named_and_left_out(pretrain: Anlage, bags: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bags"
    shutil.copytree(bags, folder)
    (folder / "s3.h5").write_bytes(b"no bag")
    torn = bytearray((folder / "s5.h5").read_bytes())
    torn[-1] ^= 4  # which only reading tells
    (folder / "s5.h5").write_bytes(torn)
    run = pretrain("--bags", folder, "--run", tmp_path / "run", "--set", "epochs=2")
    assert run.returncode == 3, run.stderr
    assert "refused: " in run.stdout
    assert "s3.h5" in run.stdout
    assert run.stdout.count("s5.h5") == 1
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["left_out"] == ["s3", "s5"]
    assert not {"s3", "s5"} & {*record["slides"], *record["held_out"]}


def test_a_dry_run_says_what_it_takes_and_does_nothing(
    pretrain: Anlage, bags: Path, tmp_path: Path
) -> None:
    run = pretrain("--bags", bags, "--run", tmp_path / "run", "--dry-run")
    assert run.returncode == 0, run.stderr
    assert "8 to train on" in run.stdout
    assert "steps: 6 of 4 bags, 3 epochs" in run.stdout
    assert not (tmp_path / "run").exists()
    published = pretrain("--recipe", "gigapath-slide", "--dry-run", sets=[])
    assert published.returncode == 0, published.stderr
    assert "slide encoder: 86.3 M parameters" in published.stdout
    assert "no --bags: assumed are 256 bags of 10,000 tiles" in published.stdout


def test_wrong_usage_ends_with_2(pretrain: Anlage, bags: Path, tmp_path: Path) -> None:
    assert pretrain("--bags", bags).returncode == 2
    wrong = pretrain("--bags", bags, "--run", tmp_path / "run", "--set", "engine.kind=fsdp2")
    assert wrong.returncode == 2
    assert "engine.kind" in wrong.stderr
    assert not (tmp_path / "run").exists()
