"""The DINO objective: the student's class token agrees with the teacher's on another view.

Shape suffixes: V student views, the global ones first; G global views; B tiles; E bottleneck
width; P prototypes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from anlage.objectives.prototypes import PrototypeTargets, prototype_cross_entropy
from anlage.objectives.refusals import need_positive


def dino_loss(
    student_VBE: Tensor,
    prototypes_PE: Tensor,
    targets: PrototypeTargets,
    *,
    student_temperature: float = 0.1,
    n_tiles: int | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of every student view with every teacher view but its own.

    The first G student views are the teacher's views. All ``G * (V - 1)`` pairs (teacher view g,
    student view v != g) weigh the same; with 2 global and 8 local views those are the 18 terms of
    DINOv2. Runs in float32 whatever autocast says, its matrix products in ``dtype``.

        L = -1 / (G (V-1)) * sum_{g, v != g} mean_b sum_p target_gbp * log softmax(s_vb / t)_p

    Args:
        student_VBE: (V, B, E) bottlenecks of the student, V >= 2.
        prototypes_PE: (P, E) prototypes of the student.
        targets: The teacher's for 1 <= G <= V views of the same tiles.
        student_temperature: Temperature t, > 0.
        n_tiles: Tiles of the whole batch, where these are a part of it; B if None.
        dtype: Dtype of the matrix products; float32 if None.

    Returns:
        loss: Scalar float32. At least the mean entropy of the targets; ``log P`` where the student
            is uniform. A score that is not finite makes it not finite.
        per_tile_B: (B,) value of each tile, detached; their sum over ``n_tiles`` is the loss.

    Raises:
        ValueError: If the shapes do not fit, or the temperature is not positive.

    Source: Caron et al. 2021, DINO, arXiv:2104.14294; normalisation of DINOv2.
    """
    n_views, n_global = len(student_VBE), len(targets.scores.bottleneck_GBE)
    if not 1 <= n_global <= n_views or n_views < 2 or student_VBE.ndim != 3:
        msg = (
            "dino_loss: needs (V, B, E) students and targets of G views with V >= 2 and "
            f"1 <= G <= V; got {tuple(student_VBE.shape)} and {n_global} views. "
            "Stack the global views first, then the local ones."
        )
        raise ValueError(msg)
    n_tiles = student_VBE.shape[1] if n_tiles is None else n_tiles
    need_positive("dino_loss", "n_tiles", n_tiles)
    pairs_VG = targets.bias_P.new_ones(n_views, n_global)
    pairs_VG.fill_diagonal_(0).div_(n_global * (n_views - 1))
    return prototype_cross_entropy(
        student_VBE,
        prototypes_PE,
        targets,
        pairs_VG=pairs_VG,
        weight_B=pairs_VG.new_full((student_VBE.shape[1],), 1 / n_tiles),
        temperature=student_temperature,
        dtype=dtype,
    )
