"""One optimiser step on one batch of tiles.

Shape suffixes: b tiles of a rank, S edge of a tile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from anlage.tiles.stream import TileBatch
from anlage.training.ema import update_teacher
from anlage.training.lesson import Lesson, to_device
from anlage.training.optimizer import clip_gradients, set_rates
from anlage.training.passes import run_passes
from anlage.training.pending_step import STOP, PendingStep
from anlage.training.schedule import learning_rate, ramp_value
from anlage.training.step_loss import StepLoss
from anlage.training.step_views import cut_parts
from anlage.training.training_state import Training

RANKME_EVERY = 50  # steps on a GPU; on a CPU every step


def train_step(training: Training, batch: TileBatch) -> dict[str, float]:
    """One optimiser step on one batch of tiles, waited for.

    Args:
        training: Networks, optimiser and settings; changed in place.
        batch: This rank's uint8 tiles (b, 3, S, S) with their numbers.

    Returns:
        The step's metrics, over all ranks.

    Raises:
        TrainingError: If the loss or the gradient is not finite on any rank; no weight has been
            changed then.
    """
    return launch_step(training, batch).read()


def _unmarked(_part: str) -> None:
    """Nobody measures the parts of the step."""


def launch_step(
    training: Training,
    batch: TileBatch,
    *,
    wants_stop: bool = False,
    begins: Callable[[str], None] = _unmarked,
) -> PendingStep:
    """Begin one optimiser step; nothing in it waits for the device.

    Whether loss and gradient are finite is known to the device alone until the step is read. It
    changes no weight where they are not, nor in any step after that.

    Args:
        training: Networks, optimiser and settings; changed in place.
        batch: This rank's uint8 tiles (b, 3, S, S) with their numbers.
        wants_stop: Whether this rank was asked to stop; all ranks are told with the metrics.
        begins: Told of each part as it begins: ``augment``, ``heads`` (teacher and student are told
            apart by hooks), ``optimiser``, ``rest``.

    Returns:
        The step, to be read after the next one was begun.
    """
    config, step = training.config, training.step
    rates = _set_rates(training)
    begins("augment")
    training.anchor_teacher()
    parts = cut_parts(training, batch)
    begins("heads")
    _let_go_of_the_last_step(training)
    loss, lesson = run_passes(training, parts)
    begins("optimiser")
    norms = clip_gradients(training.student.parts(), max_norm=config.optimizer.clip_norm)
    told = _measures(training, loss, norms, batch, wants_stop=wants_stop)
    _note_soundness(training, told)
    training.optimizer.step()
    momentum = ramp_value(config.optimizer.teacher_momentum, step, steps=config.steps)
    update_teacher(training.teacher, training.student, momentum=momentum, sound=training.sound)
    begins("rest")
    if lesson is not None:
        told |= _say_of_teacher(training, lesson)
    pending = PendingStep(
        training,
        step=step,
        batch=batch,
        per_tile_B=loss.per_tile_B,
        known={**rates, "teacher_momentum": momentum},
        measured=told,
        embedding_BD=_rows_for_rank(training, lesson),
    )
    training.step = step + 1
    return pending


def _let_go_of_the_last_step(training: Training) -> None:
    """Drop gradients, and then the memory of CUDA graphs that held them: the order matters."""
    training.optimizer.zero_grad(set_to_none=True)
    if training.config.engine.compile == "graphs":
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]


def _measures(
    training: Training,
    loss: StepLoss,
    norms: Mapping[str, torch.Tensor],
    batch: TileBatch,
    *,
    wants_stop: bool,
) -> dict[str, torch.Tensor]:
    """What the log wants to know of losses and gradients, over all ranks, on the device."""
    ranks = training.ranks
    own = {"loss": loss.total, **{f"loss_{name}": term for name, term in loss.terms.items()}}
    counted = {"read_errors": batch.n_read_errors, STOP: int(wants_stop)}
    for judge in training.config.tiles.filters.chosen():
        counted[f"rejected_{judge.name}"] = batch.rejected[judge.name]
    counts = torch.tensor(list(counted.values()), dtype=torch.float32) * ranks.world_size
    told = torch.cat([torch.stack(list(own.values())).float(), to_device(counts, training.device)])
    ranks.mean(told)
    measured = dict(zip((*own, *counted), told.unbind(), strict=True))
    return measured | {f"gradient_norm_{name}": norm for name, norm in norms.items()}


def _note_soundness(training: Training, told: Mapping[str, torch.Tensor]) -> None:
    """Let the device change nothing from the first step on that is not finite."""
    checked = [v for name, v in told.items() if name.startswith(("loss", "gradient_norm"))]
    is_finite = torch.stack([value.float() for value in checked]).isfinite().all()
    training.sound = training.sound * is_finite
    training.optimizer.found_inf = 1.0 - training.sound  # type: ignore[attr-defined]


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


def _say_of_teacher(training: Training, lesson: Lesson) -> dict[str, torch.Tensor]:
    """Entropy and usage of targets; the centres move if the step is sound."""
    training.centers = {
        name: torch.where(training.sound > 0, lesson.centers[name], held)
        for name, held in training.centers.items()
    }
    entropy, usage = lesson.cls.statistics(training.ranks)
    return {"teacher_entropy": entropy, "prototype_usage": usage}


def _rows_for_rank(training: Training, lesson: Lesson | None) -> torch.Tensor | None:
    """Embeddings of all ranks whose effective rank the log is told: on a GPU now and then only."""
    if lesson is None or (training.device.type == "cuda" and training.step % RANKME_EVERY):
        return None
    return training.ranks.rows(lesson.embedding_BD.float())
