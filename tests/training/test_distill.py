"""Distillation: from an encoder alone, and from a run with its heads."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from same_run import assert_same_run, before_steps, metrics_of, run_in_two, tensors_of
from small_encoder import ARCHITECTURE, MEAN, STD, make_encoder
from torch.nn import functional

from anlage.encoders.folder import load_encoder, save_encoder
from anlage.errors import AnlageError, CheckpointError, EncoderError
from anlage.models.vit import VisionTransformer
from anlage.slides.catalogue import Catalogue
from anlage.training import step_views
from anlage.training.checkpoint_writer import CheckpointWriter
from anlage.training.networks import EncoderWithHeads
from anlage.training.tile_config import TilePretrainConfig
from anlage.training.tile_pretrain import pretrain_tiles
from micro_recipe import micro_config

FAST = ("optimizer.warmup=0", "optimizer.peak_lr=3e-3", "model.stochastic_depth=0")
UNTIED = "patch_head={n_prototypes: 32, hidden: 16, bottleneck: 8, linear_std: null}"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of another width, depth, patch and normalisation than the student."""
    other = {"patch_px": 4, "width": 36, "depth": 3, "stochastic_depth": 0.0}
    encoder = make_encoder(7, architecture={**ARCHITECTURE, **other})
    assert (encoder.config.mean, encoder.config.std) == (MEAN, STD)
    folder = tmp_path_factory.mktemp("teacher") / "encoder"
    save_encoder(folder, encoder.model, encoder.config)
    return folder


@pytest.fixture(scope="module")
def run_of_teacher(catalogue: Catalogue, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; its heads are sharper than new ones."""
    run = tmp_path_factory.mktemp("teacher") / "run"
    config = micro_config("steps=4", *FAST, "optimizer.teacher_momentum={start: 0.5, end: 0.5}")
    assert pretrain_tiles(config, catalogue, run, device="cpu").is_finished
    return run


def made_by_hand(run: Path, config: TilePretrainConfig) -> Path:
    """A run folder with a random teacher, as the recipe says."""
    torch.manual_seed(1)
    weights = EncoderWithHeads(config.model, config.head, config.patch_head).state_dict()
    centers = {"cls": torch.zeros(32), "patch": torch.zeros(32)}
    state = {"student": weights, "teacher": weights, "centers": centers}
    provenance = {"config": config.model_dump(mode="json")}
    with CheckpointWriter(run / "checkpoints", keep=1) as writer:
        writer.save(state, step=1, provenance=provenance)
    return run


def test_the_first_loss_is_the_distance_of_embeddings_of_the_same_pixels(
    teacher: Path, catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against plain torch: own normalisation, no masks, the teacher's grid halved."""
    cut, seen = step_views.views, {}

    def watched(*args, **settings):
        made = cut(*args, **settings)
        seen["views"] = made.global_crops.clone()
        return made

    def keep(training, _) -> None:
        seen["pupil"] = training.student
        seen["state"] = {n: t.clone() for n, t in training.student.state_dict().items()}

    monkeypatch.setattr(step_views, "views", watched)
    before_steps(monkeypatch, keep)
    config = micro_config("steps=1", *FAST, f"distill.encoder={teacher}", "precision=fp32")
    pretrain_tiles(config, catalogue, tmp_path / "run", device="cpu")
    opened, pupil = load_encoder(teacher), seen["pupil"]
    pupil.load_state_dict(seen["state"])
    pixels = seen["views"]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    with torch.no_grad():
        wanted = opened.model.embed((pixels - mean) / std)
        said = pupil.encoder.eval().embed((pixels - 0.5) / 0.5)
        image = wanted.patches_BND.mT.reshape(8, 36, 8, 8)
        halved = functional.avg_pool2d(image, 2).flatten(2).mT
        cls = 1 - functional.cosine_similarity(pupil.head(said.cls_BD), wanted.cls_BD, dim=-1)
        patch = 1 - functional.cosine_similarity(pupil.head(said.patches_BND), halved, dim=-1)
    (row,) = metrics_of(tmp_path / "run")
    assert row["loss_cls"] == pytest.approx(float(cls.mean()), rel=1e-5)
    assert row["loss_patch"] == pytest.approx(float(patch.mean()), rel=1e-5)
    assert row["loss"] == pytest.approx(float(cls.mean() + patch.mean()), rel=1e-5)


def test_without_heads_the_distance_falls_and_the_average_is_kept(
    teacher: Path, catalogue: Catalogue, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    config = micro_config("steps=20", *FAST, f"distill.encoder={teacher}", "accumulate=2")
    assert pretrain_tiles(config, catalogue, run, device="cpu").is_finished
    loss = [row["loss"] for row in metrics_of(run)]
    assert np.mean(loss[-5:]) < 0.7 * np.mean(loss[:3])
    saved, kept = load_encoder(run / "encoder"), tensors_of(run)
    state = saved.model.state_dict()
    assert state.keys() == VisionTransformer(**saved.config.architecture).state_dict().keys()
    assert all(torch.equal(t, kept[f"teacher.encoder.{n}"]) for n, t in state.items())
    assert not torch.equal(state["pos_embed"], kept["student.encoder.pos_embed"])
    told = saved.config.provenance["distilled_from"]
    fingerprint = load_encoder(teacher).fingerprint
    assert told == {"source": str(teacher), "kind": "encoder", "sha256": fingerprint}


def test_with_heads_the_loss_falls_and_nothing_is_hidden_from_the_student(
    run_of_teacher: Path, catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, old = tmp_path / "run", tensors_of(run_of_teacher)
    masks, is_as_it_was = [], []

    def listen(training, _) -> None:
        if training.step == 0:
            training.student.encoder.register_forward_pre_hook(lambda _, args: masks.append(args))
        guide = training.guide.with_heads.state_dict()
        is_as_it_was.append(all(torch.equal(t, old[f"teacher.{n}"]) for n, t in guide.items()))

    before_steps(monkeypatch, listen)
    config = micro_config(
        *("steps=20", *FAST, f"distill.run={run_of_teacher}", "model.width=16", "seed=9"),
        "objective.spread=none",
    )
    assert pretrain_tiles(config, catalogue, run, device="cpu").is_finished
    rows = metrics_of(run)
    assert np.mean([r["loss"] for r in rows[-4:]]) < np.mean([r["loss"] for r in rows[:4]]) - 0.2
    assert all(row["loss_ibot"] > 0 for row in rows)
    assert [args[1] for args in masks] == [[None, None]] * 20
    assert all(is_as_it_was)
    assert load_encoder(run / "encoder").width == 16
    assert load_encoder(run / "encoder").config.provenance["distilled_from"]["step"] == 4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("head.n_prototypes=64",), "was trained with 32 prototypes; this recipe's head has 64"),
        (
            ("model.patch_px=16",),
            "has patches of 8 px; the recipe's are of 16",
        ),
        ((UNTIED,), "has tied heads and the recipe untied ones"),
    ],
)
def test_a_teacher_with_other_heads_is_refused(
    run_of_teacher: Path,
    catalogue: Catalogue,
    tmp_path: Path,
    overrides: tuple[str, ...],
    message: str,
) -> None:
    config = micro_config("steps=1", f"distill.run={run_of_teacher}", *overrides)
    with pytest.raises(CheckpointError, match=message) as error:
        pretrain_tiles(config, catalogue, tmp_path / "run", device="cpu")
    assert error.value.path == str(run_of_teacher)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_an_untied_teacher_is_refused_by_tied_heads_and_serves_where_patches_do_not_count(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    named = made_by_hand(tmp_path / "untied", micro_config(UNTIED))
    tied = micro_config("steps=1", f"distill.run={named}")
    with pytest.raises(CheckpointError, match="has tied heads and the recipe untied ones, or the"):
        pretrain_tiles(tied, catalogue, tmp_path / "run", device="cpu")
    dino = micro_config("steps=1", f"distill.run={named}", "objective.ibot_weight=0")
    assert pretrain_tiles(dino, catalogue, tmp_path / "run", device="cpu").is_finished


def test_a_teacher_whose_patches_do_not_fill_the_views_is_refused(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    encoder = make_encoder(architecture={**ARCHITECTURE, "patch_px": 14, "image_px": 28})
    save_encoder(tmp_path / "encoder", encoder.model, encoder.config)
    config = micro_config("steps=1", f"distill.encoder={tmp_path / 'encoder'}")
    with pytest.raises(EncoderError, match="14 px, which do not fill global views of 32 px"):
        pretrain_tiles(config, catalogue, tmp_path / "run", device="cpu")


@pytest.mark.parametrize("switch", ["init.run", "distill.run"])
def test_a_run_without_heads_is_refused_where_heads_are_needed(
    teacher: Path, catalogue: Catalogue, tmp_path: Path, switch: str
) -> None:
    run = tmp_path / "headless"
    pretrain_tiles(micro_config("steps=1", f"distill.encoder={teacher}"), catalogue, run)
    config = micro_config("steps=1", f"{switch}={run}")
    with pytest.raises(CheckpointError, match="has no heads with prototypes: name its encoder"):
        pretrain_tiles(config, catalogue, tmp_path / "run", device="cpu")


@pytest.mark.parametrize("kind", ["encoder", "run"])
def test_resume_is_bit_identical_and_needs_the_same_teacher(
    teacher: Path, run_of_teacher: Path, catalogue: Catalogue, tmp_path: Path, kind: str
) -> None:
    copy = tmp_path / "teacher"
    shutil.copytree(teacher if kind == "encoder" else run_of_teacher, copy)
    config = micro_config("steps=4", f"distill.{kind}={copy}", "optimizer.warmup=0")

    def pretrain(run: Path, *, resume: bool = False):
        return pretrain_tiles(config, catalogue, run, resume=resume, device="cpu")

    assert pretrain(tmp_path / "straight").is_finished
    run_in_two(pretrain, tmp_path / "run", stop=2)
    assert_same_run(tmp_path / "straight", tmp_path / "run")

    for file in (tmp_path / "run" / "checkpoints").glob("step-00000004.*"):
        file.unlink()
    before = metrics_of(tmp_path / "run")
    shutil.rmtree(copy)
    with pytest.raises(AnlageError, match="teacher"):
        pretrain(tmp_path / "run", resume=True)
    if kind == "run":
        made_by_hand(copy, micro_config())
    else:
        encoder = make_encoder(8)
        save_encoder(copy, encoder.model, load_encoder_config(teacher, encoder))
    with pytest.raises(CheckpointError, match="needs the teacher it began with"):
        pretrain(tmp_path / "run", resume=True)
    assert metrics_of(tmp_path / "run") == before


def load_encoder_config(folder: Path, encoder):
    """The description of an encoder as it stands in a folder, but of this architecture."""
    architecture = encoder.config.architecture
    return load_encoder(folder).config.model_copy(update={"architecture": architecture})


def test_the_student_does_not_depend_on_how_large_its_teacher_is(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With heads: its first weights are those of its own seed."""
    seen = []

    def first(training, _) -> None:
        seen.append(training.student.encoder.state_dict()["pos_embed"].clone())

    before_steps(monkeypatch, first)
    large = made_by_hand(tmp_path / "large", micro_config("model.depth=3"))
    for number, overrides in enumerate([(), (f"distill.run={large}",)]):
        config = micro_config("steps=1", *overrides)
        pretrain_tiles(config, catalogue, tmp_path / f"run{number}", device="cpu")
    assert torch.equal(seen[0], seen[1])
