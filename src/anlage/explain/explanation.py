"""What an encoder sees of one field, at several sizes: attention, rollout, directions of patches.

Shape suffixes: 3 channels, H heads, N patch tokens, D width.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anlage.encoders.tile_encoder import TileEncoder
from anlage.explain.attention import class_attention
from anlage.explain.field import Field
from anlage.explain.noted_pass import noted_pass
from anlage.explain.pca import fit_patch_pca
from anlage.explain.rollout import rollout_map
from anlage.progress import meter

Kind = Literal["attention", "rollout", "pca"]
KINDS: tuple[Kind, ...] = ("attention", "rollout", "pca")
UNI_PX = (224, 448, 896, 1344)


@dataclass(frozen=True, kw_only=True, eq=False)
class Look:
    """The field at one size.

    Attributes:
        px: Edge of the image the encoder was given.
        mpp: Its resolution, micrometres per pixel.
        is_enlarged: Whether it has more pixels than the field.
        attention: (H, rows, columns) float32 shares of the last block's class token, by head.
        rollout: (rows, columns) float32 shares.
        patch_rgb: (rows, columns, 3) uint8 colours of the patch tokens, alike in all looks.
    """

    px: int
    mpp: float
    is_enlarged: bool
    attention: NDArray[np.float32] | None = None
    rollout: NDArray[np.float32] | None = None
    patch_rgb: NDArray[np.uint8] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """Looks of one encoder at one field.

    Attributes:
        field: What was looked at.
        looks: One a size, smallest first.
        explained: Share of the tokens' variance in red, green and blue; empty without PCA.
        patch_px: Edge of a patch.
    """

    field: Field
    looks: tuple[Look, ...]
    explained: tuple[float, ...]
    patch_px: int


def explain_field(
    encoder: TileEncoder,
    field: Field,
    *,
    px: Sequence[int] = UNI_PX,
    kinds: Collection[Kind] = KINDS,
) -> Explanation:
    """Look at a field with an encoder at several sizes, in float32.

    Args:
        encoder: One that runs on our transformer.
        field: What to look at.
        px: Edges of the image given to the encoder, multiples of its patch.
        kinds: What to make: ``attention``, ``rollout``, ``pca``.

    Returns:
        The looks.

    Raises:
        EncoderError: If the encoder does not run on our transformer.
        ValueError: If a size is no multiple of the patch, or a kind is unknown.

    Source: Chen et al. 2024, UNI, arXiv:2308.15474: one field at 224 to 1,344 px.
    """
    patch_px = encoder.model.patch_px
    sizes = sorted(set(px))
    _check(sizes, patch_px, kinds)
    looks, tokens = [], []
    with meter("explain", total=len(sizes), unit="sizes") as progress:
        for size in sizes:
            look, tokens_ND = _look(encoder, field, size, kinds)
            looks.append(look)
            tokens.append(tokens_ND)
            progress.advance(note=f"{size} px")
    explained: tuple[float, ...] = ()
    if "pca" in kinds:
        mapping = fit_patch_pca(tokens)
        explained = tuple(mapping.explained_K.tolist())
        looks = [
            replace(look, patch_rgb=mapping.rgb(tokens_ND).reshape(*_grid(look, patch_px), 3))
            for look, tokens_ND in zip(looks, tokens, strict=True)
        ]
    return Explanation(field=field, looks=tuple(looks), explained=explained, patch_px=patch_px)


def _look(
    encoder: TileEncoder, field: Field, px: int, kinds: Collection[Kind]
) -> tuple[Look, NDArray[np.float32]]:
    model = encoder.model
    depth = len(model.blocks)
    blocks = range(depth) if "rollout" in kinds else range(depth - 1, depth)
    noted = noted_pass(model, _normalised(encoder, field.at_size(px)), blocks=blocks, who="explain")
    attention = rollout = None
    if "attention" in kinds:
        share_HS = class_attention(noted.layers[-1])[0]
        share_HN = share_HS[:, 1 + model.n_registers :]
        attention = share_HN.reshape(-1, *noted.grid).cpu().numpy()
    if "rollout" in kinds:
        rollout = rollout_map(noted, n_registers=model.n_registers)[0].cpu().numpy()
    look = Look(
        px=px,
        mpp=field.edge_um / px,
        is_enlarged=px > len(field.pixels),
        attention=attention,
        rollout=rollout,
    )
    return look, noted.tokens.patches_BND[0].float().cpu().numpy()


def _normalised(encoder: TileEncoder, pixels: NDArray[np.uint8]) -> Tensor:
    """(1, 3, px, px) as the transformer takes it."""
    device = encoder.device
    transform = torch.tensor([encoder.config.mean, encoder.config.std], device=device)
    mean, std = transform.view(2, 3, 1, 1)
    image_3HW = torch.from_numpy(pixels).to(device).permute(2, 0, 1).float() / 255
    normal_3HW: Tensor = (image_3HW - mean) / std
    return normal_3HW[None]


def _grid(look: Look, patch_px: int) -> tuple[int, int]:
    return look.px // patch_px, look.px // patch_px


def _check(sizes: Sequence[int], patch_px: int, kinds: Collection[Kind]) -> None:
    odd = [size for size in sizes if size < patch_px or size % patch_px]
    if odd or not sizes:
        near = max(round(odd[0] / patch_px), 1) * patch_px if odd else patch_px
        msg = (
            f"explain: needs sizes that are multiples of the encoder's {patch_px} px patch; got "
            f"{odd[0] if odd else 'none'}. Ask for {near}."
        )
        raise ValueError(msg)
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        msg = (
            f"explain: needs some of {', '.join(KINDS)}; got "
            f"{unknown[0] if unknown else 'none'!r}. Choose among them."
        )
        raise ValueError(msg)
