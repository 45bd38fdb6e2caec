"""One optimiser step of fine-tuning, in parts that together are the step of all its bags.

Shape suffixes: B bags of a part, N bags of the step, C outputs, K numbers of a target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from anlage.bags.loader import BagBatch
from anlage.errors import TrainingError
from anlage.models.slide_model import SlideModel, SlideOutput
from anlage.objectives.slide_instances import instance_loss
from anlage.training.finetuning.objective import TaskObjective

MOST_NAMED = 5  # slides in a message


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StepSettings:
    """What of a recipe a step needs.

    Attributes:
        objective: The loss, on the device.
        sizes: Bags of each part of the step.
        dtype: Of autocast; None for float32.
        instance_weight: Share of CLAM's loss of single tiles.
        recompute: As ``SlideModel.forward`` takes it.
        clip_norm: Largest norm of the whole gradient; None for no limit.
        seed_of: Seed of dropout of a part of the step, by its number.
        told: What messages call the step.
    """

    objective: TaskObjective
    sizes: tuple[int, ...]
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
    parts: Iterable[Part],
    settings: StepSettings,
) -> dict[str, float]:
    """Take one step; the weights change only if loss and gradient are finite.

    Bags are weighed over the whole step, so that its parts sum to what all bags at once give. A
    part is asked for when the one before it is gone, so that the device holds one at a time. Where
    a loss compares bags (Cox), all parts run twice with the same dropout: once for the outputs of
    the step, from which the loss and its gradient follow, and once to carry that gradient back.
    Between the two they wait in the memory of the CPU, in float16, as bags are stored.

    Args:
        network: The model, in training mode.
        optimizer: Over it; its rates are set.
        parts: The bags of the step, as many parts as ``settings.sizes`` has.
        settings: The loss, and how to compute.

    Returns:
        ``loss`` of the step and ``grad_norm`` before clipping.

    Raises:
        TrainingError: If an output, the loss or the gradient is not finite; names the slides.
    """
    slide_ids: list[str] = []

    def noted(part: Part) -> Part:
        slide_ids.extend(part.batch.slide_ids)
        return part

    optimizer.zero_grad(set_to_none=True)
    is_twice = settings.objective.compares_bags and len(settings.sizes) > 1
    passes = _in_two_passes if is_twice else _in_one_pass
    loss = passes(network, map(noted, parts), settings)
    trained = [p for p in network.parameters() if p.grad is not None]
    limit = float("inf") if settings.clip_norm is None else settings.clip_norm
    norm = float(nn.utils.clip_grad_norm_(trained, limit))
    if norm != norm or norm == float("inf"):  # noqa: PLR0124 - NaN differs from itself
        raise TrainingError(settings.told, f"the gradient is not finite. {_advice(slide_ids)}")
    optimizer.step()
    return {"loss": loss, "grad_norm": norm}


def _in_one_pass(network: SlideModel, parts: Iterator[Part], settings: StepSettings) -> float:
    total = 0.0
    for number in range(len(settings.sizes)):  # no name here holds a part, or it would stay
        total += _carried_back(network, next(parts), settings, number)
    return total


def _carried_back(network: SlideModel, part: Part, settings: StepSettings, number: int) -> float:
    """The share of a part in the loss, whose gradient is added to the others'."""
    output = _outputs(network, part, settings, number)
    loss = _loss(output.logits_BC, part.target_BK, part.batch.slide_ids, settings)
    if settings.instance_weight:
        share = settings.instance_weight
        loss = (1 - share) * loss + share * _of_instances(output, part, settings)
    weighed = loss * (len(part.batch.lengths) / sum(settings.sizes))
    _refuse_not_finite(weighed, part.batch.slide_ids, settings)
    torch.autograd.backward(weighed)
    return float(weighed.detach())


def _in_two_passes(network: SlideModel, parts: Iterator[Part], settings: StepSettings) -> float:
    pairs = [_first_pass(network, next(parts), settings, n) for n in range(len(settings.sizes))]
    logits_NC = torch.cat([logits_BC for logits_BC, _ in pairs]).requires_grad_()
    target_NK = torch.cat([part.target_BK for _, part in pairs])
    slide_ids = [slide_id for _, part in pairs for slide_id in part.batch.slide_ids]
    loss = _loss(logits_NC, target_NK, slide_ids, settings)
    _refuse_not_finite(loss, slide_ids, settings)
    (gradient_NC,) = torch.autograd.grad(loss, logits_NC)
    gradients = torch.split(gradient_NC, list(settings.sizes))
    for number, ((_, waiting), gradient_BC) in enumerate(zip(pairs, gradients, strict=True)):
        output = _outputs(network, _back_on(loss.device, waiting), settings, number)
        torch.autograd.backward(output.logits_BC, gradient_BC)
        del output
    return float(loss.detach())


def _loss(
    logits_NC: Tensor, target_NK: Tensor, slide_ids: Sequence[str], settings: StepSettings
) -> Tensor:
    try:
        return settings.objective.of_step(logits_NC, target_NK)
    except ValueError as error:  # such as thresholds of grades that met
        raise TrainingError(settings.told, f"{error} {_advice(slide_ids)}") from error


@torch.no_grad()
def _first_pass(
    network: SlideModel, part: Part, settings: StepSettings, number: int
) -> tuple[Tensor, Part]:
    """The outputs of a part, and the part as it waits for its second pass."""
    logits_BC = _outputs(network, part, settings, number).logits_BC
    batch = part.batch
    stored = replace(
        batch,
        features_TD=batch.features_TD.to("cpu", torch.float16),
        cell_T2=batch.cell_T2.to("cpu"),
    )
    return logits_BC, Part(stored, part.target_BK)


def _back_on(device: torch.device, waiting: Part) -> Part:
    batch = waiting.batch
    moved = replace(
        batch,
        features_TD=batch.features_TD.to(device).float(),
        cell_T2=batch.cell_T2.to(device),
    )
    return Part(moved, waiting.target_BK)


def _outputs(network: SlideModel, part: Part, settings: StepSettings, number: int) -> SlideOutput:
    """A pass of one part, with the dropout that its number has."""
    torch.manual_seed(settings.seed_of(number))
    batch = part.batch
    device = batch.features_TD.device
    with torch.autocast(device.type, dtype=settings.dtype, enabled=settings.dtype is not None):
        output: SlideOutput = network(
            batch.features_TD, batch.cell_T2, batch.lengths, recompute=settings.recompute
        )
    _refuse_not_finite(output.logits_BC, batch.slide_ids, settings)
    return output


def _of_instances(output: SlideOutput, part: Part, settings: StepSettings) -> Tensor:
    assert output.instances is not None
    found = output.instances
    for logits in (found.top_BCK2, found.bottom_BCK2):
        _refuse_not_finite(logits, part.batch.slide_ids, settings)
    return instance_loss(
        found.top_BCK2,
        found.bottom_BCK2,
        part.target_BK[:, 0],
        is_tile_BK=found.is_tile_BK,
    ).mean()


def _refuse_not_finite(value: Tensor, slide_ids: Sequence[str], settings: StepSettings) -> None:
    if not bool(torch.isfinite(value).all()):
        raise TrainingError(settings.told, f"the loss is not finite. {_advice(slide_ids)}")


def _advice(slide_ids: Sequence[str]) -> str:
    return (
        f"Its slides: {named_slides(slide_ids)}. The weights are those before the step. Lower the "
        "learning rate, or set precision=fp32."
    )


def named_slides(slide_ids: Sequence[str]) -> str:
    """The first five slides, and how many more there are."""
    n_more = len(slide_ids) - MOST_NAMED
    return ", ".join(slide_ids[:MOST_NAMED]) + (f" and {n_more} more" if n_more > 0 else "")
