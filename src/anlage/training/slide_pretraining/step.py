"""One optimiser step of slide pretraining, on a batch of bags taken in parts.

Shape suffixes: B bags of a rank.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from anlage.errors import TrainingError
from anlage.training.forensics import Finding, first_non_finite
from anlage.training.optimizer import clip_gradients, set_rates
from anlage.training.parallel import averaged
from anlage.training.schedule import learning_rate
from anlage.training.slide_pretraining.networks import MaskedBags, SlideAutoencoder, hidden_error
from anlage.training.slide_pretraining.state import SlideTraining

LOGGER = logging.getLogger(__name__)
STOP = "wants_stop"
MOST_NAMED = 8  # slides in a message


def slide_step(
    training: SlideTraining,
    parts: Iterable[MaskedBags],
    *,
    wants_stop: bool = False,
    again: Callable[[], Iterable[MaskedBags]] = tuple,
) -> tuple[dict[str, float], bool]:
    """One optimiser step.

    The loss is the mean over the bags of all ranks of each bag's error, whatever parts they are
    taken in: parts of a rank are weighted by their bags, and ranks have as many each.

    Args:
        training: Network, optimiser and settings; changed in place.
        parts: This rank's bags, ``accumulate`` parts of as many bags each, read as they are needed.
        wants_stop: Whether this rank was asked to stop; all ranks are told.
        again: Draws the same parts once more, to find where a gradient was not finite first.

    Returns:
        The step's metrics over all ranks, and whether any rank was asked to stop.

    Raises:
        TrainingError: If the loss or the gradient is not finite on any rank; no weight has been
            changed then.
    """
    config = training.config
    chosen = config.optimisation
    rate = learning_rate(chosen, training.step, steps=training.steps)
    decay = config.optimizer.weight_decay
    set_rates(training.optimizer, lr=rate, weight_decay=decay, prototypes_frozen=False)
    training.optimizer.zero_grad(set_to_none=True)
    passed = _passes(training, parts)
    norms = clip_gradients(training.network.parts(), max_norm=chosen.clip_norm)
    told, stops = _told(training, passed, wants_stop=wants_stop)
    told |= {f"gradient_norm_{name}": float(norm) for name, norm in norms.items()}
    if not all(_is_finite(value) for value in told.values()):
        _refuse_to_go_on(training, passed, told, again)
    training.optimizer.step()
    training.step += 1
    return {**told, "lr": rate}, stops


@dataclass(frozen=True, eq=False)
class _Passed:
    """What the passes of a step leave, beside gradients.

    Attributes:
        error_B: Error of each bag.
        drawn: Slide and number of each.
        n_tiles: Tiles of all.
        suspects: Parts by number, on the CPU, with an error that is not finite. All would be a
            whole step in memory.
    """

    error_B: Tensor
    drawn: list[tuple[str, int]]
    n_tiles: int
    suspects: dict[int, MaskedBags]


def _passes(training: SlideTraining, parts: Iterable[MaskedBags]) -> _Passed:
    """Forward and backward over all parts."""
    config = training.config
    n_bags = config.batch_size // training.ranks.world_size
    errors, n_tiles = [], 0
    drawn: list[tuple[str, int]] = []
    suspects: dict[int, MaskedBags] = {}
    for number, bags in enumerate(parts):
        is_last = number == config.accumulate - 1
        moved = bags.to(training.device)
        with averaged(training.run_network, is_last=is_last):
            error_b = part_error(training, moved, number)
            torch.autograd.backward(error_b.sum() / n_bags)
        errors.append(error_b.detach())
        drawn += zip(bags.slide_ids, bags.numbers, strict=True)
        n_tiles += sum(bags.lengths)
        if not error_b.isfinite().all():
            suspects[number] = bags
    assert len(errors) == config.accumulate, "a step has all its parts"
    return _Passed(torch.cat(errors), drawn, n_tiles, suspects)


def part_error(training: SlideTraining, bags: MaskedBags, number: int) -> Tensor:
    """Error of each bag of one part, with a gradient; dropout is keyed by step, rank and part."""
    dtype = training.layout.dtype
    predict = partial(
        SlideAutoencoder.predicted, bags=bags, recompute=training.config.engine.recompute
    )
    with (
        _randomness(training, number),
        torch.autocast(training.device.type, dtype=dtype, enabled=dtype is not None),
    ):
        predicted_MI = training.run_network(predict)
    return hidden_error(predicted_MI, bags)


@contextmanager
def _randomness(training: SlideTraining, part: int) -> Iterator[None]:
    """Global generators seeded for one part of a step, and put back afterwards."""
    config, ranks = training.config, training.ranks
    if config.model.dropout == 0 and config.model.stochastic_depth == 0:
        yield
        return
    n_parts = ranks.world_size * config.accumulate
    drawn = training.step * n_parts + ranks.rank * config.accumulate + part
    devices = [training.device] if training.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(config.seed * 1_000_003 + drawn)
        yield


def _told(
    training: SlideTraining, passed: _Passed, *, wants_stop: bool
) -> tuple[dict[str, float], bool]:
    """Loss and tiles over all ranks, and whether any of them was asked to stop."""
    device = passed.error_B.device
    counts = torch.tensor([passed.n_tiles, int(wants_stop)], device=device, dtype=torch.float64)
    values = torch.cat([passed.error_B.mean().double()[None], counts])
    loss, tiles, stops = training.ranks.mean(values).tolist()
    return {"loss": loss, "tiles": tiles * training.ranks.world_size}, stops > 0


def _refuse_to_go_on(
    training: SlideTraining,
    passed: _Passed,
    told: Mapping[str, float],
    again: Callable[[], Iterable[MaskedBags]],
) -> None:
    """Say what is not finite, where first, and in which slides.

    Raises:
        TrainingError: Always.
    """
    norms = {n: v for n, v in told.items() if n.startswith("gradient_norm_")}
    broken = [n.removeprefix("gradient_norm_") for n, v in norms.items() if not _is_finite(v)]
    what = f"the gradient of the {' and '.join(broken)} is not finite (the loss is)"
    if not _is_finite(told["loss"]):
        what = "the loss is not finite"
    finite = passed.error_B.isfinite().tolist()
    guilty = [pair for pair, ok in zip(passed.drawn, finite, strict=True) if not ok]
    finding = _first_fault(training, passed.suspects, again)
    own = (bool(guilty), guilty or passed.drawn, finding)
    of_all = training.ranks.objects(own)
    chosen = [entry for entry in of_all if entry[0]] or of_all
    named = [f"{slide} (g={g})" for _, pairs, _ in chosen for slide, g in pairs]
    more = f" and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
    first = next((f" First: {found}." for _, _, found in chosen if found is not None), "")
    raise TrainingError(
        training.run_dir,
        f"{what} at step {training.step}; no weight was changed.{first} Slides: "
        f"{', '.join(named[:MOST_NAMED])}{more}. Look at these bags, lower optimizer.peak_lr or "
        "use precision=fp32 in a new run, or --resume as it is.",
    )


def _first_fault(
    training: SlideTraining,
    suspects: Mapping[int, MaskedBags],
    again: Callable[[], Iterable[MaskedBags]],
) -> Finding | None:
    """What was not finite first on this rank; None too where the step cannot be run once more.

    It is looked for in the parts at fault, or where only a gradient is, in all, drawn once more.
    """
    inputs = {f"tile embeddings of part {n}": bags.features_TI for n, bags in suspects.items()}
    run_network, training.run_network = training.run_network, training.network

    def run_again() -> None:
        for number, bags in suspects.items() or enumerate(again()):
            error_b = part_error(training, bags.to(training.device), number)
            torch.autograd.backward(error_b.mean())

    try:
        return first_non_finite({"slide autoencoder": training.network}, run_again, inputs=inputs)
    except Exception as error:  # noqa: BLE001 - no memory, say: must not hide what led here
        LOGGER.warning("what was not finite first could not be found: %s", error)
        return None
    finally:
        training.run_network = run_network


def _is_finite(value: float) -> bool:
    return abs(value) < float("inf")
