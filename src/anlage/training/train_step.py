"""One optimiser step on one batch of tiles.

Shape suffixes: B tiles of the step, b of a part, G global views, S edge of a tile.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from anlage.errors import TrainingError
from anlage.models.layers.packing import SequenceShape
from anlage.probes.unsupervised import rankme
from anlage.tiles.augment.multi_crop import views
from anlage.tiles.masking import block_masks
from anlage.tiles.stream import TileBatch
from anlage.training.distill import Guide, learn_features
from anlage.training.ema import update_teacher
from anlage.training.forensics import Finding, first_non_finite, packed_tiles
from anlage.training.lesson import GLOBAL_VIEWS, Lesson, MaskedPatches, Part, teach
from anlage.training.networks import EncoderWithHeads, Pupil
from anlage.training.optimizer import clip_gradients, set_rates
from anlage.training.precision import autocast_dtype
from anlage.training.replay import save_replay
from anlage.training.schedule import learning_rate, ramp_value
from anlage.training.step_loss import Anchor, PassSettings, StepLoss, learn
from anlage.training.training_state import Training

LOGGER = logging.getLogger(__name__)


def train_step(training: Training, batch: TileBatch) -> dict[str, float]:
    """One optimiser step on one batch of tiles.

    Args:
        training: Networks, optimiser and settings; changed in place.
        batch: uint8 tiles (B, 3, S, S) with their numbers.

    Returns:
        The step's metrics.

    Raises:
        TrainingError: If the loss or the gradient is not finite; nothing has been changed then.
    """
    config, step = training.config, training.step
    rates = _set_rates(training)
    training.anchor_teacher()
    parts = _parts(training, batch)
    training.optimizer.zero_grad(set_to_none=True)
    loss, lesson = run_passes(training, parts)
    norms = clip_gradients(training.student.parts(), max_norm=config.optimizer.clip_norm)
    broken = [name for name, norm in norms.items() if not torch.isfinite(norm)]
    if broken or not torch.isfinite(loss.total):
        _stop(training, batch, parts, loss=loss, broken=broken)
    training.optimizer.step()
    momentum = ramp_value(config.optimizer.teacher_momentum, step, steps=config.steps)
    update_teacher(training.teacher, training.student, momentum=momentum)
    training.step = step + 1
    metrics = {
        "loss": float(loss.total),
        **{f"loss_{name}": float(term) for name, term in loss.terms.items()},
        **rates,
        **{f"gradient_norm_{name}": float(norm) for name, norm in norms.items()},
        "teacher_momentum": momentum,
    }
    return metrics if lesson is None else metrics | _say_of_teacher(training, lesson, step=step)


def run_passes(training: Training, parts: Sequence[Part]) -> tuple[StepLoss, Lesson | None]:
    """Teacher and student over all parts; gradients are in the student, nothing else changes.

    Args:
        training: Networks and settings.
        parts: The step's views.

    Returns:
        The loss, and the teacher's lesson (None where an encoder without heads teaches).
    """
    config, guide = training.config, training.guide
    how = _settings(training)
    taught = parts if guide is None else [_as_guide_sees(part, training, guide) for part in parts]
    if isinstance(training.student, Pupil):
        assert guide is not None, "a pupil has a guide"
        seen = [part.global_crops for part in taught]
        return learn_features(training.student, parts, guide, seen, how=how), None
    teacher = training.teacher if guide is None else guide.with_heads
    assert isinstance(teacher, EncoderWithHeads), "so has its teacher"
    with how.autocast():
        lesson = teach(
            teacher,
            taught,
            objective=config.objective,
            temperature=ramp_value(
                config.objective.teacher_temperature, training.step, steps=config.steps
            ),
            centers=training.centers,
            dtype=how.dtype,
        )
    anchor = None
    if training.gram is not None and config.objective.gram is not None:
        weight = ramp_value(config.objective.gram.weight, training.step, steps=config.steps)
        anchor = Anchor(training.gram, weight)
    loss = learn(
        training.student, parts, lesson, objective=config.objective, how=how, anchor=anchor
    )
    return loss, lesson


def _settings(training: Training) -> PassSettings:
    config, device = training.config, training.device
    dtype = autocast_dtype(config.precision, device)

    def autocast() -> contextlib.AbstractContextManager[object]:
        return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)

    def randomness(part: int) -> torch.Generator | None:
        if config.model.stochastic_depth == 0:
            return None
        drawn = config.seed * 1_000_003 + training.step * config.accumulate + part
        return torch.Generator(device).manual_seed(drawn)

    hides = training.guide is None
    return PassSettings(
        autocast=autocast,
        randomness=randomness,
        dtype=dtype,
        hides_patches=hides,
        recompute=config.recompute,
    )


def _set_rates(training: Training) -> dict[str, float]:
    """Give the optimiser the step's rates, and say the learning rate."""
    config, step = training.config, training.step
    rate = learning_rate(config.optimizer, step, steps=config.steps)
    set_rates(
        training.optimizer,
        lr=rate,
        weight_decay=ramp_value(config.optimizer.weight_decay, step, steps=config.steps),
        prototypes_frozen=step < config.optimizer.freeze_prototypes * config.steps,
        encoder_frozen=step < config.init.freeze_encoder * config.steps,
    )
    return {"lr": rate}


def _parts(training: Training, batch: TileBatch) -> list[Part]:
    """Cut and colour the views and draw the masks, part by part."""
    config, device = training.config, training.device
    pixels = batch.pixels.to(device, non_blocking=True)
    size = len(batch.g) // config.accumulate
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (config.mean, config.std))
    parts = []
    for first in range(0, len(batch.g), size):
        tiles = slice(first, first + size)
        cut = views(pixels[tiles], batch.g[tiles], spec=config.views, seed=config.seed)
        parts.append(
            Part(
                global_crops=cut.global_crops.sub_(mean).div_(std),
                local_crops=cut.local_crops.sub_(mean).div_(std),
                tiles=tiles,
                masked=_masked(training, batch.g[tiles]),
            )
        )
    return parts


def _masked(training: Training, g: Any) -> MaskedPatches | None:  # noqa: ANN401 - numbers of tiles
    config = training.config
    if not config.objective.uses_patches or isinstance(training.student, Pupil):
        return None
    grid = config.views.global_px // config.model.patch_px
    masks = block_masks(
        g,
        n_views=GLOBAL_VIEWS,
        grid=(grid, grid),
        seed=config.seed,
        share=config.objective.masked_share,
        ratio=config.objective.mask_ratio,
    )
    return MaskedPatches.of(masks, device=training.device)


def _as_guide_sees(part: Part, training: Training, guide: Guide) -> Part:
    """The same views, normalised as the frozen teacher was trained with."""
    config, device = training.config, training.device
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (config.mean, config.std))
    return replace(part, global_crops=(part.global_crops * std + mean - guide.mean) / guide.std)


def _say_of_teacher(training: Training, lesson: Lesson, *, step: int) -> dict[str, float]:
    training.centers = lesson.centers
    entropy, usage = lesson.cls.statistics()
    spread = rankme(lesson.embedding_BD.float().cpu().numpy())
    if spread == 0:
        LOGGER.warning("the teacher's embeddings are all zero at step %d: it has collapsed", step)
    return {
        "teacher_entropy": float(entropy),
        "prototype_usage": float(usage),
        "rankme": spread,
    }


def _stop(
    training: Training,
    batch: TileBatch,
    parts: Sequence[Part],
    *,
    loss: StepLoss,
    broken: Sequence[str],
) -> None:
    """Refuse to go on: which term, which module first, which tiles; the state saved for replay.

    Raises:
        TrainingError: Always.
    """
    terms = ", ".join(f"{name}={float(value):.4g}" for name, value in loss.terms.items())
    finite = torch.isfinite(loss.per_tile_B).tolist()
    guilty = [r for r, ok in zip(batch.requests, finite, strict=True) if not ok]
    what = f"the gradient of the {', '.join(broken)} is not finite (the loss is)"
    if not torch.isfinite(loss.total):
        what = "the loss is not finite"

    finding = _first_fault(training, parts)
    saved = save_replay(
        training.run_dir,
        step=training.step,
        tensors={"pixels": batch.pixels, "g": torch.as_tensor(batch.g)},
        facts={
            "terms": loss.terms,
            "per_tile": loss.per_tile_B,
            "finding": finding,
            "tiles": batch.requests,
        },
        state=training.state(),
    )
    first = "" if finding is None else f" First: {finding}."
    raise TrainingError(
        training.run_dir,
        f"{what} at step {training.step} ({terms}); no weight was changed.{first} "
        f"Tiles: {_tile_names(batch, guilty or None)}. {saved}. Look at these tiles, lower "
        "optimizer.peak_lr or use precision=fp32 in a new run (init.run begins it at this one's "
        "last checkpoint), or --resume as it is.",
    )


def _first_fault(training: Training, parts: Sequence[Part]) -> Finding | None:
    """What was not finite first; None too where the step cannot be run once more."""

    def again() -> None:
        run_passes(training, parts)

    try:
        return first_non_finite(
            {"student": training.student, "teacher": training.teacher},
            again,
            inputs=_inputs(parts),
            tiles_of_rows=packed_tiles(_shapes(training, parts[0]), parts[0].n_tiles)
            if len(parts) == 1
            else None,  # rows count from the first tile of a part, and it is not told which
        )
    except Exception as error:  # noqa: BLE001 - no memory, say: must not hide what led here
        LOGGER.warning("what was not finite first could not be found: %s", error)
        return None


def _inputs(parts: Sequence[Part]) -> dict[str, torch.Tensor]:
    """What a step was given, by name, and by its tiles where it is taken in parts."""
    named: dict[str, torch.Tensor] = {}
    for part in parts:
        of = f" of tiles {part.tiles.start} to {part.tiles.stop - 1}" if len(parts) > 1 else ""
        named |= {f"global views{of}": part.global_crops, f"local views{of}": part.local_crops}
    return named


def _shapes(training: Training, part: Part) -> list[SequenceShape]:
    encoder = training.student.encoder
    shapes = []
    for images in (part.global_crops, part.local_crops):
        if len(images):
            n_patches = (images.shape[-1] // encoder.patch_px) ** 2
            shapes.append(SequenceShape(len(images), 1 + encoder.n_registers + n_patches))
    return shapes


def _tile_names(batch: TileBatch, requests: list[Any] | None = None) -> str:
    chosen = batch.requests if requests is None else requests
    named = [f"{r.slide_id} at ({r.x}, {r.y}), {r.mpp:g} mpp, g={r.g}" for r in chosen]
    more = f" and {len(named) - 8} more" if len(named) > 8 else ""
    return "; ".join(named[:8]) + more
