"""One optimiser step of fine-tuning, in parts that together are the step of all its bags.

Shape suffixes: B bags of a part, N bags of the step, C outputs, K numbers of a target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from anlage.bags.loader import BagBatch
from anlage.errors import TrainingError
from anlage.models.slide_model import SlideModel, SlideOutput
from anlage.objectives.slide_instances import instance_loss
from anlage.training.finetune_objective import TaskObjective


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StepSettings:
    """What of a recipe a step needs.

    Attributes:
        objective: The loss, on the device.
        dtype: Of autocast; None for float32.
        instance_weight: Share of CLAM's loss of single tiles.
        recompute: As ``SlideModel.forward`` takes it.
        clip_norm: Largest norm of the whole gradient; None for no limit.
        seed_of: Seed of dropout of a part of the step, by its number.
        told: What messages call the step.
    """

    objective: TaskObjective
    dtype: torch.dtype | None = None
    instance_weight: float = 0.0
    recompute: bool = False
    clip_norm: float | None = None
    seed_of: Callable[[int], int]
    told: str


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Bags that go through the network together.

    Attributes:
        batch: The bags, on the device.
        target_BK: (B, K) their targets, on the device.
    """

    batch: BagBatch
    target_BK: Tensor


def take_step(
    network: SlideModel,
    optimizer: torch.optim.Optimizer,
    parts: Sequence[Part],
    settings: StepSettings,
) -> dict[str, float]:
    """Take one step; the weights change only if loss and gradient are finite.

    Bags are weighed over the whole step, so that its parts sum to what all bags at once give. Where
    a loss compares bags (Cox), all parts run twice with the same dropout: once for the outputs of
    the step, from which the loss and its gradient follow, and once to carry that gradient back.

    Args:
        network: The model, in training mode.
        optimizer: Over it; its rates are set.
        parts: The bags of the step.
        settings: The loss, and how to compute.

    Returns:
        ``loss`` of the step and ``grad_norm`` before clipping.

    Raises:
        TrainingError: If an output, the loss or the gradient is not finite; names the slides.
    """
    optimizer.zero_grad(set_to_none=True)
    if settings.objective.compares_bags and len(parts) > 1:
        loss = _in_two_passes(network, parts, settings)
    else:
        loss = _in_one_pass(network, parts, settings)
    trained = [p for p in network.parameters() if p.grad is not None]
    limit = float("inf") if settings.clip_norm is None else settings.clip_norm
    norm = float(nn.utils.clip_grad_norm_(trained, limit))
    if norm != norm or norm == float("inf"):  # noqa: PLR0124 - NaN differs from itself
        raise TrainingError(settings.told, f"the gradient is not finite. {_advice(parts)}")
    optimizer.step()
    return {"loss": loss, "grad_norm": norm}


def _in_one_pass(network: SlideModel, parts: Sequence[Part], settings: StepSettings) -> float:
    n_bags = sum(len(part.batch.lengths) for part in parts)
    total = 0.0
    for number, part in enumerate(parts):
        output = _outputs(network, part, settings, number)
        loss = settings.objective.of_step(output.logits_BC, part.target_BK)
        if settings.instance_weight:
            share = settings.instance_weight
            loss = (1 - share) * loss + share * _of_instances(output, part)
        weighed = loss * (len(part.batch.lengths) / n_bags)
        _refuse_not_finite(weighed, [part], settings)
        torch.autograd.backward(weighed)
        total += float(weighed.detach())
    return total


def _in_two_passes(network: SlideModel, parts: Sequence[Part], settings: StepSettings) -> float:
    with torch.no_grad():
        logits = [
            _outputs(network, part, settings, number).logits_BC for number, part in enumerate(parts)
        ]
    logits_NC = torch.cat(logits).requires_grad_()
    loss = settings.objective.of_step(logits_NC, torch.cat([part.target_BK for part in parts]))
    _refuse_not_finite(loss, parts, settings)
    (gradient_NC,) = torch.autograd.grad(loss, logits_NC)
    sizes = [len(part.batch.lengths) for part in parts]
    for number, (part, gradient_BC) in enumerate(
        zip(parts, torch.split(gradient_NC, sizes), strict=True)
    ):
        torch.autograd.backward(_outputs(network, part, settings, number).logits_BC, gradient_BC)
    return float(loss.detach())


def _outputs(network: SlideModel, part: Part, settings: StepSettings, number: int) -> SlideOutput:
    """A pass of one part, with the dropout that its number has."""
    torch.manual_seed(settings.seed_of(number))
    batch = part.batch
    device = batch.features_TD.device
    with torch.autocast(device.type, dtype=settings.dtype, enabled=settings.dtype is not None):
        output: SlideOutput = network(
            batch.features_TD, batch.cell_T2, batch.lengths, recompute=settings.recompute
        )
    _refuse_not_finite(output.logits_BC, [part], settings)
    return output


def _of_instances(output: SlideOutput, part: Part) -> Tensor:
    assert output.instances is not None
    found = output.instances
    return instance_loss(
        found.top_BCK2,
        found.bottom_BCK2,
        part.target_BK[:, 0],
        is_tile_BK=found.is_tile_BK,
    ).mean()


def _refuse_not_finite(value: Tensor, parts: Sequence[Part], settings: StepSettings) -> None:
    if not bool(torch.isfinite(value).all()):
        raise TrainingError(settings.told, f"the loss is not finite. {_advice(parts)}")


def _advice(parts: Sequence[Part]) -> str:
    names = [slide_id for part in parts for slide_id in part.batch.slide_ids]
    told = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if names[5:] else "")
    return (
        f"Its slides: {told}. The weights are those before the step. Lower the learning rate, or "
        "set precision=fp32."
    )
