"""Student, teacher and one step's loss: self-distillation as DINOv2 and Virchow2 do it.

Shape suffixes: V views, G global views, B tiles, D width, P prototypes, N patch tokens, M masked
patch tokens of the whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from anlage.models.projection_head import ProjectionHead
from anlage.models.vit import VisionTransformer
from anlage.objectives.centering import centered_targets, next_center
from anlage.objectives.dino import dino_loss
from anlage.objectives.ibot import ibot_loss
from anlage.objectives.kde import kde_loss
from anlage.objectives.koleo import koleo_loss
from anlage.objectives.sinkhorn import sinkhorn_targets, target_entropy
from anlage.training.network_config import Architecture, Head
from anlage.training.objective_config import Objective

GLOBAL_VIEWS = 2  # each is the other's target


class EncoderWithHead(nn.Module):
    """A tile encoder and the projection head that DINO and iBOT share.

    Attributes:
        encoder: The vision transformer.
        head: Projects CLS and patch tokens onto prototypes.
    """

    def __init__(self, architecture: Architecture, head: Head) -> None:
        super().__init__()
        self.encoder = VisionTransformer(**architecture.model_dump())
        self.head = ProjectionHead(width=architecture.width, **head.model_dump())


@dataclass(frozen=True)
class StepLoss:
    """What one step's forward passes give.

    Attributes:
        total: Weighted sum of the terms, a scalar with a graph.
        terms: The unweighted terms by name, scalars.
        per_tile_B: DINO term of each tile, (B,), detached; finds the tile behind a NaN.
        target_entropy: Mean entropy of the teacher's CLS targets in nats, at most log P.
        teacher_cls: CLS embeddings of the teacher's global views, (G * B, D), detached.
        centers: Centres for the next step (unchanged under Sinkhorn-Knopp).
    """

    total: Tensor
    terms: dict[str, Tensor]
    per_tile_B: Tensor
    target_entropy: Tensor
    teacher_cls: Tensor
    centers: dict[str, Tensor]


def step_loss(
    networks: tuple[EncoderWithHead, EncoderWithHead],
    views: tuple[Tensor, Tensor],
    masks: Tensor,
    *,
    objective: Objective,
    teacher_temperature: float,
    centers: Mapping[str, Tensor],
    generator: torch.Generator | None = None,
) -> StepLoss:
    """Forward passes of teacher and student over all views, and the loss.

    The teacher sees the whole global views; the student sees them with patches masked, and the
    local views, in one pass over both resolutions. CLS tokens give the DINO term, masked patch
    tokens the iBOT term, CLS embeddings before the head the spreading term (each global view on
    its own, never two views of one tile together).

    Args:
        networks: Student and teacher.
        views: Normalised global views (2 * B, 3, H, W) and local views (L * B, 3, h, w),
            view-major; L may be 0.
        masks: (G * B, N) bool, True where the student's patch is hidden.
        objective: Weights, temperatures and the kind of targets.
        teacher_temperature: Temperature of the teacher's softmax at this step.
        centers: ``cls`` and ``patch`` centres, (P,) each; used under centering only.
        generator: Randomness of the student's stochastic depth, on the views' device; None for
            torch's global one.

    Returns:
        The loss and what the log wants to know.

    Source: Oquab et al. 2023, DINOv2, arXiv:2304.07193; Zimmermann et al. 2024, Virchow2,
    arXiv:2408.00738 (KDE). Sinkhorn-Knopp runs over the CLS tokens of both global views together,
    and over the masked patch tokens together, as in DINOv2's code.
    """
    student, teacher = networks
    global_views = views[0]
    n_tiles = len(global_views) // GLOBAL_VIEWS
    target = _teach(
        teacher,
        global_views,
        masks,
        objective=objective,
        temperature=teacher_temperature,
        centers=centers,
    )
    cls_BD, student_cls, student_patches = _learn(student, views, masks, generator)
    per_tile_B = dino_loss(
        student_cls.view(-1, n_tiles, student_cls.shape[1]),
        target.cls_GBP.view(-1, n_tiles, student_cls.shape[1]),
        student_temperature=objective.student_temperature,
        reduction="none",
    )
    terms = {
        "dino": per_tile_B.mean(),
        "ibot": ibot_loss(
            student_patches,
            target.patch_MP,
            weight_M=_mask_weights(masks),
            n_images=len(global_views),
            student_temperature=objective.student_temperature,
        ),
    }
    if objective.spread != "none":
        terms[objective.spread] = _spread(cls_BD, n_tiles, objective=objective)
    return StepLoss(
        total=_weighted_sum(terms, objective=objective),
        terms={name: term.detach() for name, term in terms.items()},
        per_tile_B=per_tile_B.detach(),
        target_entropy=target_entropy(target.cls_GBP),
        teacher_cls=target.embedding_GBD,
        centers=target.centers,
    )


def _learn(
    student: EncoderWithHead,
    views: tuple[Tensor, Tensor],
    masks: Tensor,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The student's CLS embeddings of the global views, and logits of CLS and masked patches."""
    global_views, local_views = views
    if len(local_views):
        images, hidden = [global_views, local_views], [masks, None]
    else:
        images, hidden = [global_views], [masks]
    outputs = student.encoder(images, hidden, generator=generator)
    cls_tokens = torch.cat([output.cls_BD for output in outputs])
    logits = student.head(torch.cat([cls_tokens, outputs[0].patches_BND[masks]]))
    return outputs[0].cls_BD, logits[: len(cls_tokens)], logits[len(cls_tokens) :]


@dataclass(frozen=True)
class _Target:
    """What the teacher says: CLS targets (G * B, P), patch targets (M, P), embeddings, centres."""

    cls_GBP: Tensor
    patch_MP: Tensor
    embedding_GBD: Tensor
    centers: dict[str, Tensor]


@torch.no_grad()
def _teach(
    teacher: EncoderWithHead,
    global_views: Tensor,
    masks: Tensor,
    *,
    objective: Objective,
    temperature: float,
    centers: Mapping[str, Tensor],
) -> _Target:
    """The teacher's targets for CLS tokens and masked patches; it sees whole views."""
    seen = teacher.encoder([global_views])[0]
    made = {
        name: _targets(
            teacher.head(tokens), centers[name], objective=objective, temperature=temperature
        )
        for name, tokens in (("cls", seen.cls_BD), ("patch", seen.patches_BND[masks]))
    }
    following = {name: center for name, (_, center) in made.items()}
    return _Target(made["cls"][0], made["patch"][0], seen.cls_BD, following)


def _weighted_sum(terms: Mapping[str, Tensor], *, objective: Objective) -> Tensor:
    weights = {"dino": objective.dino_weight, "ibot": objective.ibot_weight}
    weighted = [weights.get(name, objective.spread_weight) * term for name, term in terms.items()]
    return torch.stack(weighted).sum()


def _targets(
    logits: Tensor, center: Tensor, *, objective: Objective, temperature: float
) -> tuple[Tensor, Tensor]:
    """Teacher's target distribution of each row, and the next centre."""
    if objective.targets == "sinkhorn":
        return sinkhorn_targets(logits, temperature=temperature), center
    targets = centered_targets(logits, center, temperature=temperature)
    return targets, next_center(center, logits)


def _mask_weights(masks: Tensor) -> Tensor:
    """1 / (masked patches of its image) for every masked patch, (M,)."""
    per_image = masks.sum(dim=1, keepdim=True).clamp(min=1)
    return (1.0 / per_image).expand_as(masks)[masks]


def _spread(cls_BD: Tensor, n_tiles: int, *, objective: Objective) -> Tensor:
    """KDE or KoLeo of each global view on its own, summed over the views as DINOv2 does."""
    by_view = torch.split(cls_BD, n_tiles)
    if objective.spread == "kde":
        losses = [kde_loss(view, concentration=objective.concentration) for view in by_view]
    else:
        losses = [koleo_loss(view) for view in by_view]
    return torch.stack(losses).sum()
