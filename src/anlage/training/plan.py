"""What a run will take, from its recipe alone: sizes, FLOPs, memory and time, before any step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from anlage.encoders.bundled import encoder_folder
from anlage.encoders.folder import load_encoder
from anlage.models.flops import (
    StepFlops,
    activation_bytes,
    forward_flops,
    parameter_count,
    recomputed_bytes,
    step_flops,
)
from anlage.models.without_weights import without_weights
from anlage.training.engine_config import Recompute
from anlage.training.lesson import GLOBAL_VIEWS
from anlage.training.networks import EncoderWithHeads, Pupil
from anlage.training.run_record import read_record
from anlage.training.tile_config import Distillation, TilePretrainConfig

FLOAT32, FLOAT16 = 4, 2  # bytes
MOMENTS = 2  # of AdamW and StableAdamW


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes that lie on the one GPU together, as far as they follow from shapes.

    Left out: activations of the heads, targets of the step, and what lives within one operation.

    Attributes:
        networks: Student, its gradients and moments, moving average, other frozen networks, and
            the two-byte copies of the student's weights under mixed precision.
        views: Views of the whole step, float32, and the tiles they are cut from, uint8.
        activations: What the student keeps from the forward to the backward pass of one part.
        scores: The budget of prototype scores.
    """

    networks: int
    views: int
    activations: float
    scores: float

    @property
    def total(self) -> float:
        """All of them together."""
        return self.networks + self.views + self.activations + self.scores


@dataclass(frozen=True, kw_only=True, slots=True)
class StagePlan:
    """One stage of a run: tiles and views of one size.

    Attributes:
        steps: Its steps.
        n_local: Local views of a tile that the student sees.
        global_px: Edge of a global view.
        local_px: Edge of a local view.
        flops: FLOPs of a step for each tile.
        anchor_flops: Those of the Gram teacher, for each tile of an anchored step.
        anchored_steps: Steps in which there is one.
        second_pass: FLOPs for each tile of a further pass of the student without gradient, which
            the spreading term asks for where a step is taken in parts; not part of the method.
        memory: What lies on the GPU.
    """

    steps: int
    n_local: int
    global_px: int
    local_px: int
    flops: StepFlops
    anchor_flops: float
    anchored_steps: int
    second_pass: float
    memory: Memory


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a run will take. Everything is computed from shapes; nothing was measured.

    Attributes:
        encoder_parameters: Parameters of the student's transformer.
        head_parameters: Parameters of its heads.
        batch_size: Tiles a step.
        part_size: Tiles that go through the networks together.
        spread: Name of the term that spreads the batch.
        stages: The run, and its last stage where it has one.
        checkpoint_bytes: Size of one checkpoint.
        missing_teacher: Frozen teacher that is not there to be counted; None where none is.
        mfu: Share of the peak that is assumed to be reached.
        peak_tflops: Peak of the GPU, TFLOP/s.
    """

    encoder_parameters: int
    head_parameters: int
    batch_size: int
    part_size: int
    spread: str
    stages: tuple[StagePlan, ...]
    checkpoint_bytes: int
    missing_teacher: str | None
    mfu: float
    peak_tflops: float

    @property
    def steps(self) -> int:
        """Optimiser steps of the run."""
        return sum(stage.steps for stage in self.stages)

    @property
    def tiles(self) -> int:
        """Tiles seen in all steps, one drawn twice counting twice."""
        return self.steps * self.batch_size

    @property
    def flops(self) -> float:
        """FLOPs that the method needs over the whole run."""
        per_tile = (
            stage.steps * stage.flops.total + stage.anchored_steps * stage.anchor_flops
            for stage in self.stages
        )
        return self.batch_size * sum(per_tile)

    @property
    def gpu_hours(self) -> float:
        """Hours of one GPU at the assumed share of its peak."""
        return self.flops / (self.mfu * self.peak_tflops * 1e12) / 3600


def plan_of(config: TilePretrainConfig, *, mfu: float = 0.35, peak_tflops: float = 989.0) -> Plan:
    """What a run will take, before any slide is opened and with no memory for its weights.

    Args:
        config: The resolved recipe. Of what it names on disk only a frozen teacher's description
            is read, where there is one.
        mfu: Model FLOPs utilisation to reckon with, above 0 and at most 1.
        peak_tflops: Peak of the GPU, TFLOP/s; the default is dense bf16 of an H100 SXM.

    Returns:
        The plan.

    Raises:
        ValueError: If ``mfu`` or ``peak_tflops`` is out of range.
        CheckpointError: If the folder of the frozen teacher's run is damaged.
        EncoderError: If the folder of the frozen teacher's encoder is damaged.

    Source: Chowdhery et al. 2022, PaLM, arXiv:2204.02311, appendix B (model FLOPs utilisation).
    """
    if not (0 < mfu <= 1 and peak_tflops > 0):
        msg = (
            f"plan_of: needs 0 < mfu <= 1 and peak_tflops > 0; got {mfu:g} and {peak_tflops:g}. "
            "0.35 and 989 stand for a well-fed H100."
        )
        raise ValueError(msg)
    distill = config.distill
    guide = None if distill is None else _architecture_of(distill)
    encoder, heads = _parameters(config, guide)
    turn = config.first_step_of_last_stage
    stages = [_stage(config, guide, first=0, last=turn, n_parameters=encoder + heads)]
    if turn < config.steps:
        late = config.of_last_stage
        stages.append(
            _stage(late, guide, first=turn, last=config.steps, n_parameters=encoder + heads)
        )
    prototypes = config.head.n_prototypes, (config.patch_head or config.head).n_prototypes
    saved = (2 + MOMENTS) * (encoder + heads) + sum(prototypes)
    return Plan(
        encoder_parameters=encoder,
        head_parameters=heads,
        batch_size=config.batch_size,
        part_size=config.batch_size // config.accumulate,
        spread=config.objective.spread,
        stages=tuple(stage for stage in stages if stage.steps),
        checkpoint_bytes=FLOAT32 * (saved + (encoder if config.objective.gram else 0)),
        missing_teacher=None if distill is None or guide else distill.run or distill.encoder,
        mfu=mfu,
        peak_tflops=peak_tflops,
    )


def lines(plan: Plan) -> tuple[str, ...]:
    """A plan in words, a line each for parameters, tiles, FLOPs, memory, checkpoint and time.

    Args:
        plan: From ``plan_of``.

    Returns:
        Lines for the terminal.
    """
    told = [
        f"parameters: encoder {_short(plan.encoder_parameters)}, heads "
        f"{_short(plan.head_parameters)}; their moving average is as large",
        f"tiles: {plan.steps:,} steps of {plan.batch_size:,} = {plan.tiles:,}",
    ]
    for number, stage in enumerate(plan.stages):
        told += _lines_of_stage(stage, plan, "last stage, " if number else "")
    told += [
        f"checkpoint: {_gb(plan.checkpoint_bytes)} each",
        f"time: {plan.flops:.3g} FLOP at {plan.mfu:.0%} MFU of {plan.peak_tflops:g} TFLOP/s "
        f"(dense bf16 of an H100: 989) = {_time(plan.gpu_hours)}",
        "all of this is computed from shapes; nothing was measured",
    ]
    if plan.missing_teacher is not None:
        told.append(
            f"the frozen teacher is not counted: {plan.missing_teacher} is not there. "
            "Name it with --set distill.run=RUN (or distill.encoder)."
        )
    return tuple(told)


def _lines_of_stage(stage: StagePlan, plan: Plan, name: str) -> list[str]:
    flops, memory = stage.flops, stage.memory
    seen = f"{GLOBAL_VIEWS} views of {stage.global_px} px"
    if stage.n_local:
        seen += f" and {stage.n_local} of {stage.local_px} px"
    heads = flops.student_heads + flops.teacher_heads
    told = [
        f"{name}a tile: {_flop(flops.total)} (student {_flop(flops.student)}, teacher "
        f"{_flop(flops.teacher)}, heads {_flop(heads)}); {seen}; {stage.steps:,} steps",
        f"{name}memory: about {_gb(memory.total)} on one GPU: networks {_gb(memory.networks)}, "
        f"views {_gb(memory.views)}, kept for backward {_gb(memory.activations)} "
        f"({plan.part_size} tiles at a time), prototype scores {_gb(memory.scores)}",
    ]
    if stage.second_pass:
        told.append(
            f"{name}parts: {plan.spread} asks for a second look at each part without gradient, "
            f"{_flop(stage.second_pass)} a tile ({stage.second_pass / flops.total:.0%} more), "
            "which the time leaves out"
        )
    if stage.anchored_steps:
        told.append(
            f"{name}Gram teacher: {_flop(stage.anchor_flops)} a tile in "
            f"{stage.anchored_steps:,} steps"
        )
    return told


def _stage(
    config: TilePretrainConfig,
    guide: Mapping[str, Any] | None,
    *,
    first: int,
    last: int,
    n_parameters: int,
) -> StagePlan:
    """One stage, from its first step up to the one after its last."""
    views, gram = config.views, config.objective.gram
    copies = config.distill is not None and config.distill.encoder is not None
    n_local = 0 if copies else views.n_local
    flops = _step_flops(config, guide, n_local=n_local, copies=copies)
    seen = forward_flops(config.model.model_dump(), edge_px=views.global_px) * GLOBAL_VIEWS
    begun = last if gram is None else round(gram.start * config.steps)
    in_parts = config.accumulate > 1 and config.objective.spreads and not copies
    return StagePlan(
        steps=last - first,
        n_local=n_local,
        global_px=views.global_px,
        local_px=views.local_px,
        flops=flops,
        anchor_flops=0.0 if gram is None else seen,
        anchored_steps=max(last - max(first, begun), 0),
        second_pass=flops.student / 3 if in_parts else 0.0,
        memory=_memory(config, guide, n_local=n_local, n_parameters=n_parameters),
    )


def _step_flops(
    config: TilePretrainConfig, guide: Mapping[str, Any] | None, *, n_local: int, copies: bool
) -> StepFlops:
    views, objective = config.views, config.objective
    n_patches = (views.global_px // config.model.patch_px) ** 2
    masked = GLOBAL_VIEWS * objective.masked_share * sum(objective.mask_ratio) / 2 * n_patches
    flops = step_flops(
        config.model.model_dump(),
        teacher=guide,
        cls_head=config.head.model_dump(),
        patch_head=None if config.patch_head is None else config.patch_head.model_dump(),
        global_px=views.global_px,
        local_px=views.local_px,
        n_global=GLOBAL_VIEWS,
        n_local=n_local,
        masked_patches=masked if objective.uses_patches else 0.0,
    )
    if config.distill is not None and guide is None:
        flops = flops._replace(teacher=0.0, teacher_heads=0.0)
    if copies:  # one linear layer in place of heads
        rows = GLOBAL_VIEWS * (1 + n_patches)
        weights = 0 if guide is None else config.model.width * guide["width"]
        flops = flops._replace(student_heads=3.0 * 2 * rows * weights, teacher_heads=0.0)
    return flops


def _memory(
    config: TilePretrainConfig,
    guide: Mapping[str, Any] | None,
    *,
    n_local: int,
    n_parameters: int,
) -> Memory:
    views, size = config.views, config.batch_size // config.accumulate
    mixed = config.precision != "fp32"
    frozen = 0 if guide is None else parameter_count(guide)
    if config.objective.gram is not None:
        frozen += parameter_count(config.model.model_dump())
    held = (3 + MOMENTS) * n_parameters + frozen  # student, gradients and moving average
    pixels = GLOBAL_VIEWS * views.global_px**2 + views.n_local * views.local_px**2
    kept = size * kept_of_a_tile(config, n_local=n_local, recompute=config.engine.recompute)
    return Memory(
        networks=FLOAT32 * held + (FLOAT16 * n_parameters if mixed else 0),
        views=config.batch_size * 3 * (FLOAT32 * pixels + views.source_px**2),
        activations=kept,
        scores=config.objective.prototype_memory_mb * 2**20,
    )


def kept_of_a_tile(config: TilePretrainConfig, *, n_local: int, recompute: Recompute) -> float:
    """Bytes that the student keeps for the backward pass, for each tile that it sees at a time.

    Where whole blocks run again, what the one at work makes anew is among them.

    Args:
        config: The recipe, of the stage in question.
        n_local: Local views of a tile that the student sees.
        recompute: What runs again in the backward pass.
    """
    kept, views = 0.0, config.views
    model, mixed = config.model.model_dump(), config.precision != "fp32"
    for edge_px, n_views in ((views.global_px, GLOBAL_VIEWS), (views.local_px, n_local)):
        if n_views:
            kept += n_views * activation_bytes(
                model, edge_px=edge_px, mixed_precision=mixed, recompute=recompute
            )
            if recompute == "full":
                kept += n_views * recomputed_bytes(model, edge_px=edge_px, mixed_precision=mixed)
    return kept


def _parameters(config: TilePretrainConfig, guide: Mapping[str, Any] | None) -> tuple[int, int]:
    """Parameters of the student's transformer and of its heads."""
    with without_weights():
        student: EncoderWithHeads | Pupil = (
            EncoderWithHeads(config.model, config.head, config.patch_head)
            if config.distill is None or config.distill.encoder is None
            else Pupil(config.model, target_width=0 if guide is None else guide["width"])
        )
    encoder = _count(student.encoder)
    return encoder, _count(student) - encoder


def _architecture_of(teacher: Distillation) -> Mapping[str, Any] | None:
    """Arguments of the frozen teacher's transformer; None if it is not there."""
    if teacher.run is not None:
        record = read_record(Path(teacher.run))
        return None if record is None else record["config"]["model"]
    assert teacher.encoder is not None, "checked by the recipe"
    is_there = encoder_folder(teacher.encoder).is_dir()
    return load_encoder(teacher.encoder).config.architecture if is_there else None


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _short(count: int) -> str:
    return f"{count / 1e9:.2f} billion" if count >= 1e9 else f"{count / 1e6:.1f} million"


def _flop(count: float) -> str:
    return f"{count / 1e12:.3g} TFLOP" if count >= 1e12 else f"{count / 1e9:.3g} GFLOP"


def _time(hours: float) -> str:
    if hours < 1:
        return f"{60 * hours:.1f} GPU minutes"
    days = f", {hours / 24:,.1f} days of one GPU" if hours >= 24 else ""
    return f"{hours:,.1f} GPU hours{days}"


def _gb(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.3g} GB"
