"""What the teacher says of a step's tiles, before the student sees any of them.

Shape suffixes: G global views, B tiles of the whole step, M masked patches of the whole step, E
bottleneck width, D width, P prototypes, N patches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from anlage.distributed import ALONE, Ranks
from anlage.models.projection_head import ProjectionHead
from anlage.objectives.centering import center_bias, next_center
from anlage.objectives.prototypes import PrototypeScores, PrototypeTargets
from anlage.objectives.sinkhorn import sinkhorn_bias
from anlage.training.networks import EncoderWithHeads
from anlage.training.objective_config import Objective

GLOBAL_VIEWS = 2  # each is the other's target


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor made on the CPU on the device; neither waits for the other."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@dataclass(frozen=True, eq=False)
class MaskedPatches:
    """Which patches of a part's global views are masked, in every form that is asked for.

    Attributes:
        masks: (G * b, N) bool, True on masked patches.
        row_M: (M,) int64, their rows among the G * b * N patches; beyond ``n_masked`` zeros that
            fill it up to a length which is the same in every step.
        weight_m: (m,) float32, one over the masked patches of their image.
    """

    masks: Tensor
    row_M: Tensor
    weight_m: Tensor

    @classmethod
    def of(cls, masks: Tensor, *, device: torch.device, bound: int = 0) -> MaskedPatches:
        """From masks on the CPU, where counting them keeps no device waiting.

        Args:
            masks: (G * b, N) bool.
            device: Where to put them.
            bound: Least length of ``row_M``, so that shapes stay the same from step to step.
        """
        row_m = masks.flatten().nonzero().flatten()
        weight_m = (1.0 / masks.sum(dim=1).clamp(min=1))[row_m // masks.shape[1]]
        row_M = functional.pad(row_m, (0, max(bound - len(row_m), 0)))
        return cls(*(to_device(part, device) for part in (masks, row_M, weight_m)))

    @property
    def n_masked(self) -> int:
        """Masked patches, m."""
        return len(self.weight_m)

    def bottleneck_of(self, patches_BND: Tensor, head: ProjectionHead) -> Tensor:
        """Bottlenecks of the masked ones of patch tokens, (m, E)."""
        patch_MD = patches_BND.flatten(0, 1).index_select(0, self.row_M)
        return head.bottleneck_of(patch_MD)[: self.n_masked]


@dataclass(frozen=True, eq=False)
class Part:
    """The views of some tiles of a step, taken through the networks together.

    Attributes:
        global_crops: (G * b, 3, H, W) normalised, view-major.
        local_crops: (L * b, 3, h, w) normalised, view-major; L may be 0.
        tiles: Which of the step's tiles these are.
        masked: The patches that count for iBOT; None without iBOT.
    """

    global_crops: Tensor
    local_crops: Tensor
    tiles: slice
    masked: MaskedPatches | None = None

    @property
    def n_tiles(self) -> int:
        """Tiles of this part, b."""
        return int(self.tiles.stop - self.tiles.start)

    @property
    def n_masked(self) -> int:
        """Masked patches of this part, m."""
        return 0 if self.masked is None else self.masked.n_masked


@dataclass(frozen=True, eq=False)
class Lesson:
    """The teacher's targets for all tiles of a step.

    Attributes:
        cls: Targets of CLS tokens, G views of B tiles.
        patches: Targets of masked patches, one view of M patches, part by part; None without iBOT.
        embedding_BD: (G * B, D) CLS embeddings of the teacher, part by part.
        centers: Centres for the next step, by head (unchanged under Sinkhorn-Knopp).
    """

    cls: PrototypeTargets
    patches: PrototypeTargets | None
    embedding_BD: Tensor
    centers: dict[str, Tensor]


@torch.no_grad()
def teach(
    teacher: EncoderWithHeads,
    parts: Sequence[Part],
    *,
    objective: Objective,
    temperature: float,
    centers: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
    ranks: Ranks = ALONE,
) -> Lesson:
    """The teacher's targets for CLS tokens and masked patches; it sees whole views.

    All parts go through the teacher first and only bottlenecks are kept, so that Sinkhorn-Knopp
    balances the whole step however many parts it is taken in.

    Args:
        teacher: The moving average of the student, or a frozen teacher.
        parts: The step's views.
        objective: Kind of targets, and memory for scores.
        temperature: Temperature of the teacher's softmax.
        centers: ``cls`` and ``patch`` centres, (P,) each; used under centering only.
        dtype: Dtype of products with prototypes; float32 if None.
        ranks: Processes that share the step: targets are balanced, and centres moved, over the
            tiles of all of them.

    Returns:
        The lesson, of this rank's parts.

    Source: Oquab et al. 2023, DINOv2, arXiv:2304.07193. Sinkhorn-Knopp runs over the CLS tokens
    of both global views together, and over the masked patch tokens together, as in its code.
    """
    cls_GbE, patch_mE, embedding = [], [], []
    for part in parts:
        seen = teacher.encoder([part.global_crops])[0]
        embedding.append(seen.cls_BD)
        bottleneck = teacher.head.bottleneck_of(seen.cls_BD)
        cls_GbE.append(bottleneck.view(GLOBAL_VIEWS, part.n_tiles, -1))
        if part.masked is not None:
            patch_mE.append(part.masked.bottleneck_of(seen.patches_BND, teacher.head_of_patches))
    tokens = {"cls": (torch.cat(cls_GbE, dim=1), teacher.head)}
    if patch_mE:
        tokens["patch"] = (torch.cat(patch_mE)[None], teacher.head_of_patches)
    made, following = {}, dict(centers)
    for name, (bottleneck_GBE, head) in tokens.items():
        made[name], following[name] = _targets(
            bottleneck_GBE,
            head,
            centers[name],
            objective=objective,
            temperature=temperature,
            dtype=dtype,
            ranks=ranks,
        )
    return Lesson(made["cls"], made.get("patch"), torch.cat(embedding), following)


def _targets(
    bottleneck_GBE: Tensor,
    head: ProjectionHead,
    center_P: Tensor,
    *,
    objective: Objective,
    temperature: float,
    dtype: torch.dtype | None,
    ranks: Ranks,
) -> tuple[PrototypeTargets, Tensor]:
    """Targets of one kind of token, and the next centre."""
    prototypes_PE = head.prototypes()
    scores = PrototypeScores(
        bottleneck_GBE,
        prototypes_PE,
        temperature=temperature,
        memory_mb=objective.prototype_memory_mb,
        dtype=dtype,
    )
    if objective.targets == "sinkhorn":
        return PrototypeTargets(scores, sinkhorn_bias(scores, ranks=ranks)), center_P
    targets = PrototypeTargets(scores, center_bias(center_P, temperature=temperature))
    rows_RE = bottleneck_GBE.flatten(0, 1)
    with torch.autocast(rows_RE.device.type, enabled=False):  # the mean logit is a mean's logit
        sum_1E = ranks.sum(rows_RE.sum(dim=0, keepdim=True))
        n_rows = ranks.sum(sum_1E.new_full((), len(rows_RE)))
        mean_1P = functional.linear(sum_1E / n_rows.clamp(min=1), prototypes_PE.to(sum_1E.dtype))
    moved_P = next_center(center_P, mean_1P)
    return targets, torch.where(n_rows > 0, moved_P, center_P)
