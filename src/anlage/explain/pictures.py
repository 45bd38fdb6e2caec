"""Maps of an explanation as pictures: heat for shares, sheets of several with their names.

Shape suffixes: H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from anlage.explain.explanation import Explanation, Look
from anlage.files import replace_whole
from anlage.geometry import Size

TOP_PERCENTILE = 99.5  # of a map, shown brightest: a few sinks do not darken the rest
CELL_PX, GAP_PX, CAPTION_PX, LINE_PX = 320, 8, 24, 17
COLUMNS = 4
PAPER, INK = (255, 255, 255), (30, 28, 36)


def heat(share: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """A map of shares as colours, black at 0 to yellow at its 99.5th percentile.

    Args:
        share: (rows, columns), each >= 0.

    Returns:
        (rows, columns, 3) uint8 RGB, one pixel a patch.
    """
    top = float(np.percentile(share, TOP_PERCENTILE))
    level = np.clip(share / top if top > 0 else np.zeros_like(share), 0, 1)
    grey = np.rint(level * 255).astype(np.uint8)
    bgr = cv2.applyColorMap(grey, cv2.COLORMAP_INFERNO)
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def write_pictures(explanation: Explanation, folder: Path) -> list[Path]:
    """Write PNG files: the field, and for each size attention of all heads, rollout and PCA.

    Args:
        explanation: What to draw.
        folder: Where to; made if it is not there.

    Returns:
        The files: ``field.png``, ``attention_0224px.png``, ``rollout_0224px.png``,
        ``pca_0224px.png`` and so on.
    """
    written = [_save(folder / "field.png", explanation.field.pixels)]
    for look in explanation.looks:
        end = f"{look.px:04d}px.png"
        if look.attention is not None:
            written.append(_save(folder / f"attention_{end}", attention_sheet(look)))
        if look.rollout is not None:
            written.append(_save(folder / f"rollout_{end}", enlarged(heat(look.rollout), look.px)))
        if look.patch_rgb is not None:
            written.append(_save(folder / f"pca_{end}", enlarged(look.patch_rgb, look.px)))
    return written


def attention_sheet(look: Look) -> NDArray[np.uint8]:
    """All heads of one size side by side, each with its number and what reaches the patches."""
    assert look.attention is not None, "the caller asked for it"
    names = [
        f"head {head}: {share.sum():.0%} on patches" for head, share in enumerate(look.attention)
    ]
    return sheet([heat(share) for share in look.attention], names)


def enlarged(picture: NDArray[np.uint8], px: int) -> NDArray[np.uint8]:
    """A square picture at another size, its pixels kept as squares."""
    return np.asarray(cv2.resize(picture, (px, px), interpolation=cv2.INTER_NEAREST), np.uint8)


def sheet(
    pictures: Sequence[NDArray[np.uint8]],
    names: Sequence[str],
    *,
    cell_px: int = CELL_PX,
    n_columns: int = COLUMNS,
) -> NDArray[np.uint8]:
    """Pictures in rows, each enlarged or reduced to its cell, with its name above it.

    Args:
        pictures: (height, width, 3) uint8 each.
        names: As many; each may have several lines.
        cell_px: Edge of a cell; the longer side of a picture.
        n_columns: Most pictures in a row.

    Returns:
        (height, width, 3) uint8.
    """
    n_columns = max(min(n_columns, len(pictures)), 1)
    n_rows = -(-len(pictures) // n_columns)
    caption_px = CAPTION_PX + LINE_PX * max((name.count("\n") for name in names), default=0)
    tallest = max((_fitted(picture, cell_px).height for picture in pictures), default=0)
    step_x, step_y = cell_px + GAP_PX, tallest + caption_px + GAP_PX
    page = Image.new("RGB", (n_columns * step_x + GAP_PX, n_rows * step_y + GAP_PX), PAPER)
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(size=14)
    for number, (picture, name) in enumerate(zip(pictures, names, strict=True)):
        row, column = divmod(number, n_columns)
        x, y = GAP_PX + column * step_x, GAP_PX + row * step_y
        draw.text((x, y + 2), name, fill=INK, font=font)
        size = _fitted(picture, cell_px)
        page.paste(Image.fromarray(_resized(picture, size)), (x, y + caption_px))
    return np.asarray(page, np.uint8)


def _fitted(picture: NDArray[np.uint8], cell_px: int) -> Size:
    """The picture's size when its longer side is the cell's."""
    height, width = picture.shape[:2]
    scale = cell_px / max(height, width)
    return Size(max(round(width * scale), 1), max(round(height * scale), 1))


def _resized(picture: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """Enlarged with its pixels kept as squares, or reduced by area."""
    is_reduced = size.width < picture.shape[1]
    how = cv2.INTER_AREA if is_reduced else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(picture, size, interpolation=how), np.uint8)


def _save(path: Path, picture: NDArray[np.uint8]) -> Path:
    with replace_whole(path) as beside:
        Image.fromarray(picture).save(beside, format="png")
    return path
