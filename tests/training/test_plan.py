"""Plans of runs, beside closed forms by hand, a published table of FLOPs, and real checkpoints."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
import torch

from anlage.encoders.folder import save_encoder
from anlage.encoders.tile_encoder import EncoderConfig
from anlage.models.vit import VisionTransformer
from anlage.recipe import load_recipe
from anlage.training.plan import Plan, lines, plan_of
from anlage.training.run_record import FORMAT, write_record
from anlage.training.tile_config import TilePretrainConfig
from anlage.training.training_state import fresh_training


def recipe(name: str, *overrides: str) -> TilePretrainConfig:
    return load_recipe(name, TilePretrainConfig, overrides=overrides)


def test_virchow2_equals_closed_forms() -> None:
    """ViT-H/14 with 4 registers and SwiGLU; stochastic depth 0.4; untied heads."""
    plan = plan_of(recipe("virchow2"), mfu=0.4, peak_tflops=500)
    d, depth, k = 1280, 32, 131072
    hidden = 8 * ((int(d * 4 * 2 / 3) + 7) // 8)  # two thirds of 4 d, rounded up to 8
    n_global, n_local = 16**2 + 1 + 4, 7**2 + 1 + 4
    weights = 4 * d * d + 3 * d * hidden  # q, k, v, projection; gate, value, out

    block = weights + 4 * d + 2 * hidden + d  # and the biases
    block += 4 * d + 2 * d  # two norms, two LayerScales
    positions = (16**2 + 1 + 4 + 1) * d  # patches, class, registers, mask token
    encoder = depth * block + positions + (3 * 14 * 14 + 1) * d + 2 * d
    assert plan.encoder_parameters == encoder

    def head(e: int) -> int:
        return d * 2048 + 2048**2 + 2048 * e + e * k

    assert plan.head_parameters == sum(head(e) + 2 * 2048 + e + k for e in (384, 256))

    def blocks(n: int) -> int:
        return depth * (2 * n * weights + 4 * n * n * d)

    def patches(n: int) -> int:
        return 2 * n * 3 * 14 * 14 * d

    (stage,) = plan.stages
    learned = 2 * (0.6 * blocks(n_global) + patches(256)) + 8 * (
        0.6 * blocks(n_local) + patches(49)
    )
    assert stage.flops.student == pytest.approx(3 * learned)
    assert stage.flops.teacher == 2 * (blocks(n_global) + patches(256))
    masked = 2 * 0.5 * 0.3 * 256
    assert stage.flops.student_heads == pytest.approx(3 * 2 * (10 * head(384) + masked * head(256)))
    assert stage.flops.teacher_heads == pytest.approx(2 * (2 * head(384) + masked * head(256)))
    assert stage.second_pass == pytest.approx(learned)

    assert plan.tiles == 488281 * 4096
    assert plan.flops == pytest.approx(plan.tiles * stage.flops.total)
    assert plan.gpu_hours == pytest.approx(plan.flops / (0.4 * 500e12 * 3600))
    n = plan.encoder_parameters + plan.head_parameters
    assert plan.checkpoint_bytes == 4 * (4 * n + 2 * k)
    assert stage.memory.networks == 4 * 5 * n + 2 * n
    assert stage.memory.scores == 2 * 2**30
    assert stage.memory.views == 4096 * 3 * (4 * (2 * 224**2 + 8 * 98**2) + 392**2)


# The table of FLOPs a tile in TFLOP: 2 x 224 px and 8 x 98 px, 131,072 prototypes, 4 registers,
# worked out on paper for a survey of other codes before this one was written; bottlenecks of 256
# for S and of 384 for L and H; without stochastic depth, then with 0.4.
TABLE = {
    "vit-s14-reg4": (256, 0.18, 0.13, 0.005),
    "vit-l14-reg4": (384, 2.15, 1.44, 0.005),
    "vit-h14-reg4": (384, 4.41, 2.93, 0.005),
}


@pytest.mark.parametrize("size", TABLE)
@pytest.mark.parametrize("stochastic_depth", [0.0, 0.4])
def test_flops_equal_a_table_within_its_rounding(size: str, stochastic_depth: float) -> None:
    bottleneck, whole, thinned, rounding = TABLE[size]
    config = recipe(
        "virchow2",
        f"model.size={size}",
        f"model.stochastic_depth={stochastic_depth}",
        f"head.bottleneck={bottleneck}",
        f"patch_head.bottleneck={bottleneck}",
    )
    (stage,) = plan_of(config).stages
    expected = thinned if stochastic_depth else whole
    assert stage.flops.total / 1e12 == pytest.approx(expected, abs=rounding)


def tiny_training(tmp_path: Path, config: TilePretrainConfig) -> int:
    """Bytes of a checkpoint after one step of the optimiser."""
    training = fresh_training(config, tmp_path, {}, device=torch.device("cpu"))
    for parameter in training.student.parameters():
        parameter.grad = torch.zeros_like(parameter)
    training.optimizer.step()
    buffer = io.BytesIO()
    torch.save(training.state(), buffer)
    return buffer.tell()


@pytest.mark.parametrize("patch_head", ["null", "{n_prototypes: 100, hidden: 64, bottleneck: 16}"])
def test_a_checkpoint_is_as_large_as_planned(tmp_path: Path, patch_head: str) -> None:
    config = recipe("tiny", f"patch_head={patch_head}")
    found = tiny_training(tmp_path, config)
    assert 1 <= found / plan_of(config).checkpoint_bytes < 1.02  # names, and the steps of moments


def test_parts_divide_what_is_kept_and_nothing_else() -> None:
    whole = plan_of(recipe("tiny")).stages[0]
    parts = plan_of(recipe("tiny", "accumulate=4")).stages[0]
    assert parts.memory.activations == pytest.approx(whole.memory.activations / 4)
    assert parts.memory.networks == whole.memory.networks
    assert parts.memory.views == whole.memory.views
    assert parts.flops == whole.flops
    assert whole.second_pass == 0
    assert parts.second_pass > 0
    assert (
        plan_of(recipe("tiny", "accumulate=4", "objective.spread=none")).stages[0].second_pass == 0
    )


def test_float32_has_no_copies_and_keeps_more() -> None:
    mixed, full = (plan_of(recipe("tiny", f"precision={p}")) for p in ("bf16", "fp32"))
    n = full.encoder_parameters + full.head_parameters
    assert mixed.stages[0].memory.networks - full.stages[0].memory.networks == 2 * n
    assert full.stages[0].memory.activations > mixed.stages[0].memory.activations


def test_without_patches_no_patch_is_projected() -> None:
    (both,), (cls,) = (
        plan_of(recipe("tiny", f"objective.ibot_weight={weight}")).stages for weight in (1, 0)
    )
    hidden, e, k, d = 512, 128, 256, 144
    row = 2 * (d * hidden + hidden**2 + hidden * e + e * k)
    assert cls.flops.student_heads == 3 * 6 * row
    assert both.flops.student_heads == pytest.approx(3 * (6 + 2 * 0.5 * 0.3 * 64) * row)


def test_a_last_stage_is_added() -> None:
    stage = "last_stage={start: 0.9, source_px: 224, global_px: 128, local_px: 64}"
    plain, staged = plan_of(recipe("tiny")), plan_of(recipe("tiny", stage))
    first, last = staged.stages
    assert (first.steps, last.steps, staged.steps) == (270, 30, plain.steps)
    assert (last.global_px, last.local_px) == (128, 64)
    assert last.flops.total > 4 * first.flops.total
    per_step = 270 * first.flops.total + 30 * last.flops.total
    assert staged.flops == pytest.approx(32 * per_step)
    assert sum(line.startswith("last stage") for line in lines(staged)) == 2


def test_gram_anchoring_counts_from_its_start() -> None:
    stage = "last_stage={start: 0.9, source_px: 224, global_px: 128, local_px: 64}"
    gram = "objective.gram={start: 0.5}"
    plain, anchored = plan_of(recipe("tiny", stage)), plan_of(recipe("tiny", stage, gram))
    first, last = anchored.stages
    assert (first.anchored_steps, last.anchored_steps) == (120, 30)
    more = 32 * (120 * first.flops.teacher + 30 * last.flops.teacher)
    assert anchored.flops - plain.flops == pytest.approx(more)
    encoder = 4 * plain.encoder_parameters
    assert anchored.checkpoint_bytes - plain.checkpoint_bytes == encoder
    assert first.memory.networks - plain.stages[0].memory.networks == encoder
    assert any("Gram teacher" in line for line in lines(anchored))


def test_a_frozen_teacher_with_heads_is_read_from_its_run(tmp_path: Path) -> None:
    teacher = recipe("tiny", "model.width=192", "model.depth=12")
    write_record(tmp_path, {"format": FORMAT, "config": teacher.model_dump(mode="json")})
    alone = plan_of(teacher).stages[0]
    plan = plan_of(recipe("tiny", f"distill.run={tmp_path}"))
    (stage,) = plan.stages
    assert stage.flops.teacher == alone.flops.teacher
    assert stage.flops.teacher_heads == alone.flops.teacher_heads
    assert stage.flops.student == plan_of(recipe("tiny")).stages[0].flops.student
    assert plan.missing_teacher is None


def test_the_encoder_that_comes_along_is_counted_as_a_teacher() -> None:
    plan = plan_of(recipe("tiny", "model.patch_px=16", "distill.encoder=anlage-tiny"))
    assert plan.head_parameters == 144 * 192 + 192


def test_an_encoder_as_teacher_sees_whole_global_views_alone(tmp_path: Path) -> None:
    small = {"image_px": 64, "patch_px": 8, "width": 96, "depth": 2, "n_heads": 3}
    about = EncoderConfig(
        architecture=small, tile_px=64, mpp=1.0, mean=(0.5,) * 3, std=(0.5,) * 3, provenance={}
    )
    save_encoder(tmp_path / "teacher", VisionTransformer(**small), about)
    plan = plan_of(recipe("tiny", f"distill.encoder={tmp_path / 'teacher'}"))
    (stage,) = plan.stages
    assert plan.head_parameters == 144 * 96 + 96
    assert stage.n_local == 0
    assert stage.flops.teacher_heads == 0
    assert stage.flops.student_heads == 3 * 2 * 2 * 65 * 144 * 96
    own = plan_of(recipe("tiny", "views.n_local=0")).stages[0]
    assert stage.flops.student == own.flops.student
    frozen = sum(p.numel() for p in VisionTransformer(**small).parameters())
    n = plan.encoder_parameters + plan.head_parameters
    assert stage.memory.networks == 4 * (5 * n + frozen) + 2 * n


def test_a_teacher_that_is_not_there_is_named_and_not_guessed() -> None:
    plan = plan_of(recipe("virchow2g-mini"))
    assert plan.missing_teacher == "RUN_OF_VIRCHOW2G"
    assert plan.stages[0].flops.teacher == plan.stages[0].flops.teacher_heads == 0
    told = lines(plan)[-1]
    assert "RUN_OF_VIRCHOW2G is not there" in told
    assert "--set distill.run=RUN" in told
    assert not any("not there" in line for line in lines(plan_of(recipe("tiny"))))


@pytest.mark.parametrize(
    ("mfu", "peak"), [(0.0, 989.0), (1.01, 989.0), (float("nan"), 989.0), (0.35, 0.0)]
)
def test_a_rate_out_of_range_is_refused(mfu: float, peak: float) -> None:
    with pytest.raises(ValueError, match="plan_of: needs 0 < mfu <= 1 and peak_tflops > 0; got"):
        plan_of(recipe("tiny"), mfu=mfu, peak_tflops=peak)


def test_lines_say_what_the_plan_holds() -> None:
    plan = plan_of(recipe("virchow2"))
    told = "\n".join(lines(plan))
    for part in (
        "encoder 631.2 million",
        "488,281 steps of 4,096 = 1,999,998,976",
        "2 views of 224 px and 8 of 98 px",
        "2.92 TFLOP",
        "32 tiles at a time",
        "35% MFU of 989 TFLOP/s (dense bf16 of an H100: 989)",
        "nothing was measured",
    ):
        assert part in told
    assert "GPU minutes" in "\n".join(lines(plan_of(recipe("tiny"))))
    assert "days" not in "\n".join(lines(plan_of(recipe("small-1gpu"))))


def test_a_plan_is_immutable() -> None:
    plan: Plan = plan_of(recipe("tiny"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.mfu = 1.0  # type: ignore[misc]


def test_the_page_shows_what_is_printed() -> None:
    page = Path(__file__).parents[2] / "docs" / "how_to" / "recipes.md"
    shown = "\n".join(("recipe virchow2", *lines(plan_of(recipe("virchow2")))))
    assert f"--recipe virchow2 --dry-run\n{shown}\n```" in page.read_text(encoding="utf-8")
