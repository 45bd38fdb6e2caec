"""The passes of a step: teacher, then student, forward and backward."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial

import torch

from anlage.training.distill import learn_features
from anlage.training.lesson import Lesson, Part, teach
from anlage.training.networks import EncoderWithHeads, Pupil
from anlage.training.parallel import without_gradients
from anlage.training.precision import autocast_dtype
from anlage.training.schedule import ramp_value
from anlage.training.step_loss import Anchor, PassSettings, StepLoss, learn
from anlage.training.step_views import as_guide_sees
from anlage.training.training_state import Training


def run_passes(training: Training, parts: Sequence[Part]) -> tuple[StepLoss, Lesson | None]:
    """Teacher and student over all parts; gradients are in the student, nothing else changes.

    Args:
        training: Networks and settings.
        parts: The step's views.

    Returns:
        The loss, and the teacher's lesson (None where an encoder without heads teaches).
    """
    config, guide = training.config, training.guide
    how = settings_of(training)
    taught = parts if guide is None else [as_guide_sees(part, training, guide) for part in parts]
    if isinstance(training.student, Pupil):
        assert guide is not None, "a pupil has a guide"
        seen = [part.global_crops for part in taught]
        return learn_features(training.run_student, parts, guide, seen, how=how), None
    lesson = lesson_of(training, taught, how)
    anchor = None
    if training.gram is not None and config.objective.gram is not None:
        weight = ramp_value(config.objective.gram.weight, training.step, steps=config.steps)
        anchor = Anchor(training.gram, weight)
    loss = learn(
        training.run_student, parts, lesson, objective=config.objective, how=how, anchor=anchor
    )
    return loss, lesson


def lesson_of(training: Training, parts: Sequence[Part], how: PassSettings) -> Lesson:
    """What the teacher says of all parts of a step.

    Args:
        training: Networks and settings.
        parts: The step's views, as the teacher sees them.
        how: How networks are run.
    """
    config, guide = training.config, training.guide
    teacher = training.teacher if guide is None else guide.with_heads
    assert isinstance(teacher, EncoderWithHeads), "who gives a lesson has heads"
    steps = config.steps
    with how.autocast(), without_gradients(training.layout):
        lesson: Lesson = teacher(
            partial(
                teach,
                parts=parts,
                objective=config.objective,
                temperature=ramp_value(
                    config.objective.teacher_temperature, training.step, steps=steps
                ),
                centers=training.centers,
                dtype=how.dtype,
                ranks=how.ranks,
            )
        )
    return lesson


def settings_of(training: Training) -> PassSettings:
    """How the networks of a step are run."""
    config, device, ranks = training.config, training.device, training.ranks
    dtype = autocast_dtype(config.precision, device)

    def autocast() -> contextlib.AbstractContextManager[object]:
        return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)

    def randomness(part: int) -> torch.Generator | None:
        if config.model.stochastic_depth == 0:
            return None
        n_parts = ranks.world_size * config.accumulate
        drawn = training.step * n_parts + ranks.rank * config.accumulate + part
        return torch.Generator(device).manual_seed(config.seed * 1_000_003 + drawn)

    hides = training.guide is None
    return PassSettings(
        autocast=autocast,
        randomness=randomness,
        dtype=dtype,
        hides_patches=hides,
        recompute=config.engine.recompute,
        ranks=ranks,
    )
