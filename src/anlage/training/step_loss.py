"""The student's side of a step: its passes, its losses and their gradients, part by part.

Shape suffixes: V views, G global views, B tiles of the whole step, b of a part, m masked patches
of a part, E bottleneck width, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from anlage.distributed import ALONE, Ranks
from anlage.models.vit import TokenOutput, VisionTransformer
from anlage.objectives.dino import dino_loss
from anlage.objectives.gram import gram_loss
from anlage.objectives.ibot import ibot_loss
from anlage.objectives.kde import kde_loss
from anlage.objectives.koleo import koleo_loss
from anlage.training.engine_config import Recompute
from anlage.training.lesson import GLOBAL_VIEWS, Lesson, Part
from anlage.training.networks import EncoderWithHeads
from anlage.training.objective_config import Objective
from anlage.training.parallel import Run, averaged


@dataclass(frozen=True, eq=False)
class StepLoss:
    """What the passes of one step give; gradients are in the student's parameters.

    Attributes:
        total: Weighted sum of the terms, detached scalar.
        terms: The unweighted terms by name, detached scalars.
        per_tile_B: First term of each tile, (B,), detached; finds the tile behind a NaN.
    """

    total: Tensor
    terms: dict[str, Tensor]
    per_tile_B: Tensor


@dataclass(frozen=True, eq=False)
class PassSettings:
    """How networks are run in a step.

    Attributes:
        autocast: Gives the context in which they run.
        randomness: Part's number -> generator of its stochastic depth, in the same state each
            time.
        dtype: Dtype of products with prototypes; float32 if None.
        hides_patches: Whether the student's masked patches are hidden from it; not so where it
            learns from a frozen teacher.
        recompute: What runs again in the backward pass instead of being kept from the forward pass.
        ranks: Processes that share the step, each with as many tiles.
    """

    autocast: Callable[[], AbstractContextManager[object]]
    randomness: Callable[[int], torch.Generator | None]
    dtype: torch.dtype | None = None
    hides_patches: bool = True
    recompute: Recompute = "none"
    ranks: Ranks = ALONE


@dataclass(frozen=True, eq=False)
class Anchor:
    """An earlier teacher whose patch likenesses are held on to, and how much that weighs."""

    encoder: VisionTransformer
    weight: float


def learn(
    student: Run[EncoderWithHeads],
    parts: Sequence[Part],
    lesson: Lesson,
    *,
    objective: Objective,
    how: PassSettings,
    anchor: Anchor | None = None,
) -> StepLoss:
    """Passes of the student over all parts of a step, forward and backward.

    The student sees the global views with patches masked, and the local views, in one pass over
    both resolutions. CLS tokens give the DINO term, masked patch tokens the iBOT term, CLS
    embeddings before the head the spreading term (each global view on its own, never two views of
    one tile together), patch tokens of the global views the Gram term. The gradient is that of the
    whole step however many parts it is taken in: what couples tiles is known beforehand (targets)
    or comes from a first pass without a graph (the spreading term's gradient). So it is over
    ranks: losses are means over a rank's tiles, gradients are averaged over ranks, and the
    spreading term sees the embeddings of all of them.

    Args:
        student: Runs the trained network; its gradients are added to.
        parts: The step's views.
        lesson: The teacher's targets of the same parts.
        objective: Weights and temperatures.
        how: How networks are run.
        anchor: Gram teacher; None for no Gram term.

    Returns:
        The loss and what the log wants to know.

    Source: Oquab et al. 2023, DINOv2, arXiv:2304.07193; Zimmermann et al. 2024, Virchow2,
    arXiv:2408.00738 (KDE); Gao et al. 2021, arXiv:2101.06983 (gradients in two passes).
    """
    spread = None
    if len(parts) > 1 and objective.spreads:
        spread = _spread_beforehand(student, parts, objective=objective, how=how)
    settings = _PartSettings(parts, lesson, objective, how, anchor, spread)
    weights = settings.weights
    sums: dict[str, Tensor] = {}
    per_tile = []
    for number in range(len(parts)):
        with averaged(student, is_last=number == len(parts) - 1):
            with how.autocast():
                found = student(partial(_part_loss, number=number, settings=settings))
            torch.autograd.backward(found["total"])
        sums = {name: sums.get(name, 0.0) + term for name, term in found["terms"].items()}
        per_tile.append(found["per_tile"])
    if spread is not None:
        sums[objective.spread] = spread.value
    loss = torch.stack([weights[name] * term for name, term in sums.items()]).sum()
    return StepLoss(loss, sums, torch.cat(per_tile))


@dataclass(frozen=True, eq=False)
class _PartSettings:
    """What the loss of any part of a step depends on."""

    parts: Sequence[Part]
    lesson: Lesson
    objective: Objective
    how: PassSettings
    anchor: Anchor | None
    spread: _Spread | None

    @property
    def n_tiles(self) -> int:
        return sum(part.n_tiles for part in self.parts)

    @property
    def weights(self) -> Mapping[str, float]:
        objective, anchor = self.objective, self.anchor
        return {
            "dino": objective.dino_weight,
            "ibot": objective.ibot_weight,
            objective.spread: objective.spread_weight,
            "gram": 0.0 if anchor is None else anchor.weight,
        }

    def patches(self, number: int) -> slice:
        """Where the masked patches of a part lie among those of the step."""
        before = sum(part.n_masked for part in self.parts[:number])
        return slice(before, before + self.parts[number].n_masked)


def _part_loss(
    network: EncoderWithHeads, *, number: int, settings: _PartSettings
) -> dict[str, Any]:
    """The loss of one part, its terms, and the DINO term of each of its tiles."""
    part, objective, how = settings.parts[number], settings.objective, settings.how
    passed = run_student(network.encoder, part, number, how=how)
    terms, per_tile_b = _prototype_terms(network, passed, number, settings=settings)
    if settings.anchor is not None:
        share = part.n_tiles / settings.n_tiles
        terms["gram"] = _gram(settings.anchor, passed, part) * share
    if objective.spreads and settings.spread is None:
        terms[objective.spread] = spread_loss(_by_view(passed), objective, how.ranks)
    total = torch.stack([settings.weights[name] * term for name, term in terms.items()]).sum()
    if settings.spread is not None:
        pull = settings.spread.pull(part, _by_view(passed))
        total = total + objective.spread_weight * pull
    kept = {name: term.detach() for name, term in terms.items()}
    return {"total": total, "terms": kept, "per_tile": per_tile_b}


def run_student(
    encoder: VisionTransformer, part: Part, number: int, *, how: PassSettings
) -> list[TokenOutput]:
    """The student's tokens of the global views, patches hidden if asked, and of the local ones."""
    hides, generator = how.hides_patches, how.randomness(number)
    masks = part.masked.masks if hides and part.masked is not None else None
    if not len(part.local_crops):
        return encoder([part.global_crops], [masks], generator=generator, recompute=how.recompute)  # type: ignore[no-any-return]
    images, hidden = [part.global_crops, part.local_crops], [masks, None]
    return encoder(images, hidden, generator=generator, recompute=how.recompute)  # type: ignore[no-any-return]


def spread_loss(cls_GBD: Tensor, objective: Objective, ranks: Ranks = ALONE) -> Tensor:
    """KDE or KoLeo of each global view on its own, summed over the views as DINOv2 does.

    Every rank computes it over the tiles of all of them.
    """
    cls_GBD = ranks.rows_with_gradient(cls_GBD.transpose(0, 1)).transpose(0, 1)
    if objective.spread == "kde":
        losses = [kde_loss(view, concentration=objective.concentration) for view in cls_GBD]
    else:
        losses = [koleo_loss(view) for view in cls_GBD]
    return torch.stack(losses).sum()


def _by_view(passed: Sequence[TokenOutput]) -> Tensor:
    cls_BD = passed[0].cls_BD
    return cls_BD.reshape(GLOBAL_VIEWS, -1, cls_BD.shape[1])


def _prototype_terms(
    student: EncoderWithHeads,
    passed: Sequence[TokenOutput],
    number: int,
    *,
    settings: _PartSettings,
) -> tuple[dict[str, Tensor], Tensor]:
    """DINO and iBOT terms of one part, and the DINO term of each of its tiles."""
    part, lesson, objective = settings.parts[number], settings.lesson, settings.objective
    n_tiles, dtype = settings.n_tiles, settings.how.dtype
    terms: dict[str, Tensor] = {}
    head, prototypes_PE = student.head, student.head.prototypes()
    cls_tokens = torch.cat([output.cls_BD for output in passed])
    bottleneck_RE = head.bottleneck_of(cls_tokens)
    terms["dino"], per_tile_b = dino_loss(
        bottleneck_RE.view(-1, part.n_tiles, bottleneck_RE.shape[1]),
        prototypes_PE,
        lesson.cls.part(part.tiles),
        student_temperature=objective.student_temperature,
        n_tiles=n_tiles,
        dtype=dtype,
    )
    if part.masked is not None and lesson.patches is not None:
        if student.head_of_patches is not head:  # the other head's prototypes are let go
            head, prototypes_PE = student.head_of_patches, student.head_of_patches.prototypes()
        terms["ibot"], _ = ibot_loss(
            part.masked.bottleneck_of(passed[0].patches_BND, head),
            prototypes_PE,
            lesson.patches.part(settings.patches(number)),
            weight_M=part.masked.weight_m,
            n_images=GLOBAL_VIEWS * n_tiles,
            student_temperature=objective.student_temperature,
            dtype=dtype,
        )
    return terms, per_tile_b


def _gram(anchor: Anchor, passed: Sequence[TokenOutput], part: Part) -> Tensor:
    with torch.no_grad():
        held = anchor.encoder([part.global_crops])[0].patches_BND
    return gram_loss(passed[0].patches_BND, held)


@dataclass(frozen=True, eq=False)
class _Spread:
    """The spreading term of a whole step, and its gradient by this rank's CLS embeddings."""

    value: Tensor
    gradient_GBD: Tensor

    def pull(self, part: Part, cls_GbD: Tensor) -> Tensor:
        """A scalar whose gradient by the part's embeddings is that of the term."""
        return (self.gradient_GBD[:, part.tiles] * cls_GbD.float()).sum()


def _spread_beforehand(
    student: Run[EncoderWithHeads],
    parts: Sequence[Part],
    *,
    objective: Objective,
    how: PassSettings,
) -> _Spread:
    """A first pass over all parts without a graph, for the one term that couples their tiles."""

    def of_all(network: EncoderWithHeads) -> list[Tensor]:
        passed = (run_student(network.encoder, part, n, how=how) for n, part in enumerate(parts))
        return [_by_view(tokens).float() for tokens in passed]

    with torch.no_grad(), how.autocast():
        found = student(of_all)
    cls_GBD = torch.cat(found, dim=1).requires_grad_()
    value = spread_loss(cls_GBD, objective, how.ranks)
    (gradient_GBD,) = torch.autograd.grad(value, cls_GBD)
    return _Spread(value.detach(), gradient_GBD)
