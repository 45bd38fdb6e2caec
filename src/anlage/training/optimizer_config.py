"""The optimiser of a run, as it stands in a recipe: its rates, decays and schedules."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from anlage.training.section import Ramp, Section, Share

Decay = Annotated[float, Field(ge=0.0, lt=1.0)]


class Optimisation(Section):
    """AdamW or StableAdamW with DINOv2's parameter groups.

    Attributes:
        kind: ``adamw``, or ``stable_adamw`` (Virchow2G), whose update clipping takes the place of
            ``clip_norm``.
        peak_lr: Learning rate after the warm-up, for this recipe's batch (not scaled by it).
        schedule: What the rate does after its warm-up: ``cosine`` to ``min_lr``; ``inverse_sqrt``
            of the step (Virchow); ``constant`` (DINOv3).
        min_lr: Learning rate at the end of the cosine or of the cooldown.
        warmup: Share of the run in which the rate rises linearly from 0.
        cooldown: Share of the run, at its end, in which the rate falls linearly to ``min_lr``; not
            with ``cosine``.
        betas: The two decay rates.
        epsilon: Added to the root of the second moment.
        weight_decay: Weight decay over the run.
        layer_decay: Factor on the rate for each block further from the output; 1 for none.
        patch_embed_lr: Factor on the rate of the patch projection.
        clip_norm: Largest gradient norm, for the encoder and for the head each; None for none.
        freeze_prototypes: Share of the run in which the last layer keeps its values.
        teacher_momentum: Decay of the teacher's moving average.
    """

    kind: Literal["adamw", "stable_adamw"] = "adamw"
    peak_lr: PositiveFloat
    schedule: Literal["cosine", "inverse_sqrt", "constant"] = "cosine"
    min_lr: float = Field(default=1e-6, ge=0.0)
    warmup: Share = Field(default=0.1, lt=1.0)
    cooldown: Share = 0.0
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    epsilon: PositiveFloat = 1e-8
    weight_decay: Ramp = Ramp(start=0.04, end=0.4)
    layer_decay: float = Field(default=1.0, gt=0.0, le=1.0)
    patch_embed_lr: PositiveFloat = 0.2
    clip_norm: PositiveFloat | None = 3.0
    freeze_prototypes: Share = 0.0
    teacher_momentum: Ramp = Ramp(start=0.992, end=1.0)

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        ends = (self.teacher_momentum.start, self.teacher_momentum.end)
        if not all(0 <= end <= 1 for end in ends):
            msg = "teacher_momentum needs to stay within 0 and 1, such as 0.992 to 1"
            raise ValueError(msg)
        if self.min_lr > self.peak_lr:
            msg = f"min_lr={self.min_lr:g} needs to be at most peak_lr={self.peak_lr:g}"
            raise ValueError(msg)
        if self.kind == "stable_adamw" and self.clip_norm is not None:
            msg = "clip_norm needs to be null with stable_adamw, which clips each update itself"
            raise ValueError(msg)
        if self.schedule == "cosine" and self.cooldown > 0:
            msg = "cooldown needs schedule inverse_sqrt or constant; a cosine cools down by itself"
            raise ValueError(msg)
        if self.schedule == "inverse_sqrt" and self.warmup == 0:
            msg = "warmup needs to be above 0 with inverse_sqrt, whose rate begins at its end"
            raise ValueError(msg)
        if self.warmup + self.cooldown > 1:
            msg = "warmup and cooldown need to fit into the run; their shares sum to more than 1"
            raise ValueError(msg)
        return self
