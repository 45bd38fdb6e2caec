"""One picture a look: a few tiles, where the class token looks, and what the patches say."""

# Shape suffixes: R tiles (rows of the picture), 3 channels, S pixels of an edge, H heads.

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from anlage.encoders.tile_encoder import EncoderConfig, TileEncoder
from anlage.explain.attention import attention_maps
from anlage.explain.pca import fit_patch_pca
from anlage.files import replace_whole
from anlage.models.vit import VisionTransformer
from anlage.training.watch import in_evaluation
from anlage.training.watched_tiles import refuse_pixels

SHOWN_PX = 224  # edge of a cell; smaller tiles are blown up, larger ones shrunk
GAP_PX, TITLE_PX = 6, 24
WHITE = 255

Picture = NDArray[np.uint8]


def picture_path(run_dir: Path, step: int) -> Path:
    """``RUN/watch/step-00000100.png`` of the look after 100 finished steps."""
    return run_dir / "watch" / f"step-{step:08d}.png"


def draw_look(
    model: VisionTransformer,
    pixels_R3SS: NDArray[np.uint8] | Tensor,
    path: Path,
    *,
    config: EncoderConfig,
    heads: Sequence[int] = (0, -1),
) -> Path:
    """Draw tiles, attention of the class token and PCA of the patch tokens, one row a tile.

    Columns: the tile; attention of the last block, mean over heads; that of a few heads; the three
    strongest directions of the patch tokens of these tiles as red, green and blue. Attention goes
    from black at 0 to yellow at the largest share of its map, so that an even one is all yellow.
    Directions are found anew in every look: hues are not to be compared between looks.

    The model comes back in its mode, on its device; nothing random is drawn.

    Args:
        model: The teacher's transformer.
        pixels_R3SS: (R, 3, S, S) uint8 tiles, the same ones in every look; S a multiple of the
            patch.
        path: PNG to write, whole or not at all; see ``picture_path``.
        config: Transform the encoder is used with.
        heads: Heads that get a column, counted from the last if negative; repeated ones get one.

    Returns:
        The path.

    Raises:
        ValueError: If the pixels are no tiles of the model, or there is no such head.
        OSError: If the disk is full.
    """
    pixels = torch.as_tensor(pixels_R3SS)
    refuse_pixels("draw_look", pixels.shape, pixels.dtype)
    chosen = _heads(model, heads)
    with in_evaluation(model):
        device = model.cls_token.device
        tokens_RND = TileEncoder(config, model, device=device).patch_tokens(pixels)
        mean, std = (
            torch.tensor(v, device=device).view(3, 1, 1) for v in (config.mean, config.std)
        )
        normal_R3SS = (pixels.to(device).float() / 255 - mean) / std
        map_RHhw = attention_maps(model, normal_R3SS).cpu().numpy()
    tokens = tokens_RND.cpu().numpy()
    colour_RN3 = fit_patch_pca(tokens.reshape(-1, tokens.shape[-1])).rgb(tokens)
    columns = {
        "tile": _shown(pixels.permute(0, 2, 3, 1).cpu().numpy()),
        "attention": _heat(map_RHhw.mean(axis=1)),
        **{f"head {head}": _heat(map_RHhw[:, head]) for head in chosen},
        "patches, PCA": _shown(colour_RN3.reshape(*map_RHhw[:, 0].shape, 3), is_grid=True),
    }
    with replace_whole(path) as beside:
        _laid_out(columns).save(beside, format="png")
    return path


def _heads(model: VisionTransformer, heads: Sequence[int]) -> list[int]:
    n_heads = int(model.blocks[-1].attn.n_heads)  # type: ignore[arg-type, union-attr]
    unknown = [head for head in heads if not -n_heads <= head < n_heads]
    if unknown:
        msg = (
            f"draw_look: heads need to be {-n_heads} to {n_heads - 1}; got {unknown[0]}. "
            "Name heads that the model has."
        )
        raise ValueError(msg)
    return list(dict.fromkeys(head % n_heads for head in heads))


def _shown(images: NDArray[np.uint8], *, is_grid: bool = False) -> list[Picture]:
    """Images, (R, rows, columns, 3), at the size of a cell; a grid keeps its patches' edges."""
    how = cv2.INTER_NEAREST if is_grid else cv2.INTER_AREA
    return [
        _picture(cv2.resize(image, (SHOWN_PX, SHOWN_PX), interpolation=how)) for image in images
    ]


def _heat(map_Rhw: NDArray[np.float32]) -> list[Picture]:
    """Maps as colours, each from 0 (black) to its own largest share (yellow)."""
    most_R11 = map_Rhw.max(axis=(1, 2), keepdims=True)
    level_Rhw = np.rint(255 * map_Rhw / np.where(most_R11 > 0, most_R11, 1)).astype(np.uint8)
    heat = [cv2.applyColorMap(level, cv2.COLORMAP_INFERNO)[..., ::-1] for level in level_Rhw]
    return _shown(np.ascontiguousarray(heat, dtype=np.uint8), is_grid=True)


def _laid_out(columns: dict[str, list[Picture]]) -> Image.Image:
    """Cells in a grid, the name of each column over it."""
    n_rows, step_px = len(next(iter(columns.values()))), SHOWN_PX + GAP_PX
    size_px = (len(columns) * step_px + GAP_PX, n_rows * step_px + GAP_PX + TITLE_PX)
    sheet = Image.new("RGB", size_px, (WHITE, WHITE, WHITE))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    for place, (name, cells) in enumerate(columns.items()):
        left = GAP_PX + place * step_px
        draw.text((left, GAP_PX), name, fill=(0, 0, 0), font=font)
        for row, cell in enumerate(cells):
            sheet.paste(Image.fromarray(cell), (left, TITLE_PX + GAP_PX + row * step_px))
    return sheet


def _picture(values: object) -> Picture:
    return np.asarray(values, dtype=np.uint8)
