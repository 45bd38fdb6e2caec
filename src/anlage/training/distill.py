"""Distillation: a frozen larger teacher says what the student is to learn.

Shape suffixes: G global views, B tiles, N patches, D the student's width, T the teacher's width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from anlage.distributed import ALONE, Ranks
from anlage.encoders.folder import load_encoder
from anlage.encoders.tile_encoder import weights_sha256
from anlage.errors import CheckpointError, EncoderError
from anlage.models.vit import TokenOutput, VisionTransformer
from anlage.objectives.feature_distance import feature_distance, match_grid
from anlage.training.lesson import GLOBAL_VIEWS, Part
from anlage.training.networks import EncoderWithHeads, Pupil
from anlage.training.parallel import Run, averaged
from anlage.training.start import load_teacher
from anlage.training.step_loss import PassSettings, StepLoss, run_student
from anlage.training.tile_config import TilePretrainConfig


@dataclass(frozen=True, eq=False)
class Guide:
    """The frozen teacher of a distillation.

    Attributes:
        encoder: Its transformer.
        with_heads: Its transformer with heads; None where only the encoder is known.
        mean: (3, 1, 1) what it takes off pixels, 0 to 1.
        std: (3, 1, 1) what it divides them by.
        provenance: Where it comes from, as JSON.
    """

    encoder: VisionTransformer
    with_heads: EncoderWithHeads | None
    mean: Tensor
    std: Tensor
    provenance: dict[str, Any]

    @property
    def has_no_heads(self) -> bool:
        """Whether embeddings are all it has to say."""
        return self.with_heads is None

    @property
    def width(self) -> int:
        """Width of its tokens, T."""
        return int(self.encoder.width)

    @property
    def network(self) -> nn.Module:
        """All there is of it."""
        return self.encoder if self.with_heads is None else self.with_heads

    def to(self, device: torch.device) -> Self:
        """Itself on another device."""
        self.network.to(device)
        return type(self)(
            self.encoder,
            self.with_heads,
            self.mean.to(device),
            self.std.to(device),
            self.provenance,
        )


def guide_of(config: TilePretrainConfig, *, ranks: Ranks = ALONE) -> Guide | None:
    """The frozen teacher that a recipe names; None without one.

    Args:
        config: The recipe.
        ranks: The processes that learn from it; each calls this.

    Raises:
        CheckpointError: If the run named has no checkpoint, or other prototypes than the recipe.
        EncoderError: If the encoder named cannot be read, or the views are no whole patches of its.
    """
    named = config.distill
    if named is None:
        return None
    if named.run is not None:
        network, provenance = load_teacher(Path(named.run), ranks=ranks)
        _refuse_other_prototypes(Path(named.run), network, config)
        made_with = provenance["config"]
        source = {
            "source": named.run,
            "kind": "run",
            "step": provenance["step"],
            "sha256": ranks.from_main(lambda: weights_sha256(network.state_dict())),
        }
        mean, std = (_channels(made_with.get(k, getattr(config, k))) for k in ("mean", "std"))
        return Guide(network.encoder, network, mean, std, source)
    assert named.encoder is not None, "checked by the recipe"
    opened = load_encoder(named.encoder)
    model = opened.model.requires_grad_(requires_grad=False).eval()
    _refuse_broken_patches(named.encoder, model, config)
    source = {"source": named.encoder, "kind": "encoder", "sha256": opened.fingerprint}
    return Guide(model, None, _channels(opened.config.mean), _channels(opened.config.std), source)


def learn_features(
    pupil: Run[Pupil],
    parts: Sequence[Part],
    guide: Guide,
    guide_views: Sequence[Tensor],
    *,
    how: PassSettings,
) -> StepLoss:
    """Passes of a student that learns a frozen encoder's CLS and patch embeddings.

    Both see the same whole global views, each normalised in its own way. CLS and patches count
    the same; local views and masks play no part.

        L = mean_b (1 - cos(h(cls_b), cls*_b)) + mean_b mean_n (1 - cos(h(patch_bn), patch*_bn))

    Args:
        pupil: Runs the trained network; its gradients are added to.
        parts: The step's views.
        guide: Frozen teacher.
        guide_views: Global views of each part as the teacher takes them, (G * b, 3, H, W).
        how: How networks are run.

    Returns:
        The loss by terms ``cls`` and ``patch``, and the sum of both for each tile.
    """
    n_tiles = sum(part.n_tiles for part in parts)
    sums: dict[str, Tensor] = {}
    per_tile = []
    n_images = GLOBAL_VIEWS * n_tiles
    for number, (part, views) in enumerate(zip(parts, guide_views, strict=True)):
        with averaged(pupil, is_last=number == len(parts) - 1):
            with how.autocast():
                with torch.no_grad():
                    wanted = guide.encoder([views])[0]
                said = partial(_distances, part=part, number=number, wanted=wanted, how=how)
                distance = pupil(said)
                total = torch.stack(list(distance.values())).sum() / n_images
            torch.autograd.backward(total)
        for name, term in distance.items():
            sums[name] = sums.get(name, 0.0) + term.detach().sum() / n_images
        both = torch.stack(list(distance.values())).sum(dim=0).detach()
        per_tile.append(both.view(GLOBAL_VIEWS, part.n_tiles).mean(dim=0))
    return StepLoss(torch.stack(list(sums.values())).sum(), sums, torch.cat(per_tile))


def _distances(
    pupil: Pupil, *, part: Part, number: int, wanted: TokenOutput, how: PassSettings
) -> dict[str, Tensor]:
    """Distance of CLS and patch embeddings to the teacher's, of each global view, (G * b,)."""
    only_global = Part(part.global_crops, part.local_crops[:0], part.tiles)
    seen = run_student(pupil.encoder, only_global, number, how=how)[0]
    to_edge = part.global_crops.shape[-1] // pupil.encoder.patch_px
    from_edge = math.isqrt(wanted.patches_BND.shape[1])
    patches = match_grid(
        wanted.patches_BND, from_grid=(from_edge, from_edge), to_grid=(to_edge, to_edge)
    )
    return {
        "cls": feature_distance(pupil.head(seen.cls_BD), wanted.cls_BD, reduction="none"),
        "patch": feature_distance(pupil.head(seen.patches_BND), patches, reduction="none"),
    }


def _refuse_broken_patches(
    source: str, teacher: VisionTransformer, config: TilePretrainConfig
) -> None:
    """The teacher takes the student's views, so they are whole patches of its own too."""
    for stage in (config, config.of_last_stage):
        edge_px = stage.views.global_px
        if edge_px % teacher.patch_px:
            msg = (
                f"has patches of {teacher.patch_px} px, which do not fill global views of "
                f"{edge_px} px. Choose a multiple of both patch sizes for global_px."
            )
            raise EncoderError(source, msg)


def _refuse_other_prototypes(
    run_dir: Path, teacher: EncoderWithHeads, config: TilePretrainConfig
) -> None:
    if teacher.encoder.patch_px != config.model.patch_px:
        msg = (
            f"has patches of {teacher.encoder.patch_px} px; the recipe's are of "
            f"{config.model.patch_px}. Heads speak of patch for patch: make them alike, or distil "
            "from its encoder."
        )
        raise CheckpointError(run_dir, msg)
    pairs = {
        "head": (teacher.head, config.head),
        "patch_head": (teacher.head_of_patches, config.patch_head or config.head),
    }
    if not config.objective.uses_patches:
        del pairs["patch_head"]
    for name, (theirs, ours) in pairs.items():
        if len(theirs.last_layer.weight_v) != ours.n_prototypes:
            msg = (
                f"was trained with {len(theirs.last_layer.weight_v)} prototypes; this recipe's "
                f"{name} has {ours.n_prototypes}. Give the student as many as its teacher."
            )
            raise CheckpointError(run_dir, msg)
    is_tied = config.patch_head is None
    if config.objective.uses_patches and (teacher.patch_head is None) != is_tied:
        msg = "has tied heads and the recipe untied ones, or the reverse. Set patch_head alike."
        raise CheckpointError(run_dir, msg)


def _channels(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(3, 1, 1)
