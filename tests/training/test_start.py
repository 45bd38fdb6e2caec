"""Where weights come from: an encoder, a file, another run; what is frozen, recorded, refused."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from same_run import assert_same_run, before_steps, metrics_of, run_in_two, tensors_of

from anlage.encoders.folder import load_encoder
from anlage.encoders.tile_encoder import TileEncoder, weights_sha256
from anlage.errors import AnlageError, CheckpointError, EncoderError
from anlage.slides.catalogue import Catalogue
from anlage.training.tile_pretrain import encoder_config, pretrain_tiles
from anlage.training.watch import in_evaluation
from micro_recipe import micro_config

QUICK = ("steps=4", "optimizer.warmup=0", "optimizer.peak_lr=3e-3")


@pytest.fixture(scope="module")
def source(catalogue: Catalogue, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; with centering, so that its centres are not zero."""
    run = tmp_path_factory.mktemp("source") / "run"
    config = micro_config(*QUICK, "seed=3", "objective.targets=centering")
    assert pretrain_tiles(config, catalogue, run, device="cpu").is_finished
    return run


def of(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def assert_equal(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    assert len(mine) > 5
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("named", ["encoder", "encoder/model.safetensors"])
def test_both_networks_begin_as_the_encoder_that_is_named(
    source: Path, catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    """They embed the tiles of the first step as it does; heads are those of the seed."""
    wanted, seen = load_encoder(source / "encoder"), []

    def compare(training, batch) -> None:
        if training.step > 0:
            return
        pixels = batch.pixels[..., :32, :32]
        for network in (training.student, training.teacher):
            with in_evaluation(network.encoder):
                begun = TileEncoder(encoder_config(training), network.encoder)
                seen.append(torch.equal(begun.embed(pixels), wanted.embed(pixels)))
        heads = [network.head.state_dict() for network in (training.student, training.teacher)]
        assert_equal(*heads)
        seen.append(torch.equal(heads[0]["mlp.0.weight"], old["head.mlp.0.weight"]))

    old = of(tensors_of(source), "student.")
    before_steps(monkeypatch, compare)
    run = tmp_path / "run"
    config = micro_config("steps=1", f"init.encoder={source / named}")
    pretrain_tiles(config, catalogue, run, device="cpu")
    assert seen == [True, True, False]
    told = json.loads((run / "run.json").read_text())["init"]
    assert told == load_encoder(run / "encoder").config.provenance["init"]
    assert told["source"] == str(source / named)
    if named == "encoder":
        assert told["sha256"] == weights_sha256(wanted.model.state_dict())
        assert told["made_by"]["config"]["seed"] == 3


def test_a_run_goes_on_with_both_networks_their_heads_and_centres(
    source: Path, catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, run = tensors_of(source), tmp_path / "run"
    assert not torch.equal(old["student.head.mlp.0.weight"], old["teacher.head.mlp.0.weight"])

    def compare(training, _) -> None:
        assert_equal(training.student.state_dict(), of(old, "student."))
        assert_equal(training.teacher.state_dict(), of(old, "teacher."))
        assert old["centers.cls"].any()
        assert torch.equal(training.centers["cls"], old["centers.cls"])
        assert not training.optimizer.state

    before_steps(monkeypatch, compare)
    config = micro_config("steps=1", f"init.run={source}", "objective.targets=centering")
    assert pretrain_tiles(config, catalogue, run, device="cpu").is_finished
    told = json.loads((run / "run.json").read_text())["init"]
    both = {n: t for n, t in old.items() if n.startswith(("student.", "teacher."))}
    assert told == {
        "source": str(source),
        "kind": "run",
        "step": 4,
        "sha256": weights_sha256(both),
    }


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("head.n_prototypes=64", "head.n_prototypes was 32, is now 64"),
        ("model.depth=3", "model.depth was 2, is now 3"),
        ("patch_head={n_prototypes: 32, hidden: 16, bottleneck: 8}", "patch_head was None, is now"),
    ],
)
def test_a_run_with_other_networks_is_refused_before_anything_is_written(
    source: Path, catalogue: Catalogue, tmp_path: Path, override: str, difference: str
) -> None:
    run, config = tmp_path / "run", micro_config("steps=1", f"init.run={source}", override)
    with pytest.raises(CheckpointError, match=difference) as error:
        pretrain_tiles(config, catalogue, run, device="cpu")
    assert error.value.path == str(source)
    assert [path.name for path in run.iterdir()] == [".lock"]


@pytest.mark.parametrize("kind", ["encoder", "run"])
def test_a_source_that_is_missing_leaves_no_half_run(
    catalogue: Catalogue, tmp_path: Path, kind: str
) -> None:
    run, gone = tmp_path / "run", tmp_path / "gone"
    with pytest.raises(AnlageError, match="gone"):
        pretrain_tiles(micro_config("steps=1", f"init.{kind}={gone}"), catalogue, run, device="cpu")
    assert [path.name for path in run.iterdir()] == [".lock"]
    assert pretrain_tiles(micro_config("steps=1"), catalogue, run, device="cpu").is_finished


def test_an_encoder_of_another_width_is_refused(
    source: Path, catalogue: Catalogue, tmp_path: Path
) -> None:
    config = micro_config("steps=1", f"init.encoder={source / 'encoder'}", "model.width=32")
    with pytest.raises(EncoderError, match="width"):
        pretrain_tiles(config, catalogue, tmp_path / "run", device="cpu")


@pytest.mark.parametrize(
    "kind", [(), ("optimizer.kind=stable_adamw", "optimizer.clip_norm=null")], ids=["adamw", "sa"]
)
def test_a_frozen_encoder_keeps_its_bits_until_its_share_is_over(
    source: Path, catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind
) -> None:
    """In the student and in its moving average; the heads move from the first step on."""
    encoder = load_encoder(source / "encoder").model.state_dict()
    heads, is_as_begun = [], []

    def compare(training, _) -> None:
        networks = (training.student, training.teacher)
        states = [network.encoder.state_dict() for network in networks]
        equal = [all(torch.equal(s[n], encoder[n]) for n in encoder) for s in states]
        is_as_begun.append(equal)
        heads.append([network.head.mlp[0].weight.detach().clone() for network in networks])

    before_steps(monkeypatch, compare)
    config = micro_config(
        *(*QUICK, f"init.encoder={source / 'encoder'}", "init.freeze_encoder=0.5", *kind),
        "optimizer.teacher_momentum={start: 0.5, end: 0.5}",
    )
    pretrain_tiles(config, catalogue, tmp_path / "run", device="cpu")
    assert is_as_begun == [[True, True]] * 3 + [[False, False]]
    for now, later in itertools.pairwise(heads):
        assert not torch.equal(now[0], later[0])
        assert not torch.equal(now[1], later[1])


def test_a_run_that_goes_on_needs_its_source_no_more(
    source: Path, catalogue: Catalogue, tmp_path: Path
) -> None:
    copy = tmp_path / "encoder"
    shutil.copytree(source / "encoder", copy)
    config = micro_config(*QUICK, f"init.encoder={copy}", "init.freeze_encoder=0.5")

    def pretrain(run: Path, *, resume: bool = False):
        if resume:
            shutil.rmtree(copy)
        return pretrain_tiles(config, catalogue, run, resume=resume, device="cpu")

    assert pretrain(tmp_path / "straight").is_finished
    run_in_two(pretrain, tmp_path / "run", stop=3)
    assert_same_run(tmp_path / "straight", tmp_path / "run")
    straight, other = (
        load_encoder(tmp_path / name / "encoder").config.provenance["init"]
        for name in ("straight", "run")
    )
    assert straight == other


def test_a_run_that_lost_its_checkpoints_begins_with_the_same_weights_or_not_at_all(
    source: Path, catalogue: Catalogue, tmp_path: Path
) -> None:
    copy, run = tmp_path / "encoder", tmp_path / "run"
    shutil.copytree(source / "encoder", copy)
    config = micro_config("steps=2", f"init.encoder={copy}")
    pretrain_tiles(config, catalogue, run, device="cpu")
    rows = metrics_of(run)
    shutil.rmtree(run / "checkpoints")
    pretrain_tiles(config, catalogue, run, resume=True, device="cpu")
    assert metrics_of(run) == rows
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(copy)
    shutil.copytree(run / "encoder", copy)  # other weights under the same name
    with pytest.raises(CheckpointError, match="needs the weights to start from it began with"):
        pretrain_tiles(config, catalogue, run, resume=True, device="cpu")
