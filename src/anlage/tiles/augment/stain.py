"""Stains made stronger, weaker or added, each image by its own amounts.

Shape suffixes: N images, 3 channels or stains, H rows, W columns, P pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

HED = (  # rows: haematoxylin, eosin, DAB; optical density in red, green and blue
    (0.65, 0.70, 0.29),
    (0.07, 0.99, 0.11),
    (0.27, 0.57, 0.78),
)
DARKEST = 1 / 510  # half a byte: black has a density too


def stain_basis(vectors: Sequence[Sequence[float]] | None) -> Tensor:
    """Three directions of optical density, (3, 3) float64, a row each.

    Args:
        vectors: Two stains, as ``estimate_stains`` finds them, which what is at right angles to
            both completes; or None for haematoxylin, eosin and DAB.

    Source: Ruifrok and Johnston 2001, Quantification of histochemical staining by color
    deconvolution, Anal Quant Cytol Histol 23: the three default vectors.
    """
    if vectors is None:
        return torch.tensor(HED, dtype=torch.float64)
    first, second = torch.tensor(vectors, dtype=torch.float64)
    across = torch.linalg.cross(first, second)
    return torch.stack([first, second, across / across.norm()])


def jitter_stains(
    image_N3HW: Tensor, factor_N3: Tensor, offset_N3: Tensor, *, basis_33: Tensor
) -> Tensor:
    """Change the concentrations c of each image's stains to ``factor * c + offset``.

    Concentrations are of the natural optical density, ``-log(value) = c @ basis``, so factor 1
    and offset 0 change nothing. Both steps and the way back are one matrix an image.

    Args:
        image_N3HW: (N, 3, H, W) RGB in [0, 1].
        factor_N3: (N, 3), >= 0, one for each stain.
        offset_N3: (N, 3), one for each stain; the glass is stained by it too.
        basis_33: The stains' densities, a row each, on the CPU; see ``stain_basis``.

    Returns:
        (N, 3, H, W) in [0, 1].

    Source: Tellez et al. 2018, Whole-slide mitosis detection in H&E breast histology using PHH3
    as a reference, IEEE TMI (arXiv:1808.05896), stain augmentation. Difference: densities are
    natural logarithms with 0 for white, so an offset of 0.05 darkens or lightens by a few per cent.
    """
    inverse_33 = basis_33.inverse().to(image_N3HW.device)  # found where the host need not wait
    basis_33 = basis_33.to(image_N3HW.device, non_blocking=True)
    change_N33 = inverse_33 @ (factor_N3.double()[:, :, None] * basis_33)
    added_N3 = offset_N3.double() @ basis_33
    density_N3P = image_N3HW.flatten(2).clamp(min=DARKEST).log_().neg_()
    density_N3P = torch.baddbmm(
        added_N3.float()[:, :, None], change_N33.mT.float().contiguous(), density_N3P
    )
    return density_N3P.neg_().exp_().clamp_(0, 1).view_as(image_N3HW)
