"""Contact sheets of masks: what a person looks at before spending days of computing on them."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from anlage.files import replace_whole
from anlage.geometry import Size, level0_px
from anlage.progress import meter
from anlage.slides.catalogue import Catalogue, SlideRow
from anlage.slides.masks import TissueMask

COLUMNS, ROWS = 2, 6  # slides of a sheet
PICTURE = Size(360, 240)  # largest size of a slide, shown twice: as it is, and with its mask
CAPTION_PX, GAP_PX, FONT_PX = 22, 8, 13
OUTLINE = (0, 150, 60)
OUTSIDE = 0.45  # brightness of what is no tissue
PAPER, INK = (255, 255, 255), (20, 20, 20)
MAX_NAME = 48

Pixels = NDArray[np.uint8]


def write_mask_sheets(catalogue: Catalogue, folder: str | Path) -> list[Path]:
    """Show every slide of a catalogue beside its mask, twelve to a PNG.

    Each slide is shown twice: as it is, and with the tissue outlined and all else darkened. Under
    it stand its slide_id, the share and the area of the tissue, and the method.

    Args:
        catalogue: An open catalogue.
        folder: Where ``masks-0001-of-0003.png`` and so on go; made if it is missing.

    Returns:
        The sheets, in the catalogue's order.

    Raises:
        CatalogueError: If the catalogue's masks are missing or damaged.
        OSError: If a file cannot be written.
    """
    n_sheets = ceil(len(catalogue) / (COLUMNS * ROWS))
    sheets: list[Path] = []
    cells: list[Pixels] = []
    with meter("masks", total=len(catalogue), unit="slides") as progress:
        for number, row in enumerate(catalogue.iter_rows(), start=1):
            cells.append(
                _cell(row, catalogue.thumbnail(row.slide_id), catalogue.mask(row.slide_id))
            )
            if len(cells) == COLUMNS * ROWS or number == len(catalogue):
                name = f"masks-{len(sheets) + 1:04}-of-{n_sheets:04}.png"
                sheets.append(_write_sheet(Path(folder) / name, cells))
                cells.clear()
            progress.advance(note=row.slide_id)
    return sheets


def outlined(picture: Pixels, tissue: TissueMask, *, slide_size: Size, slide_mpp: float) -> Pixels:
    """A picture of a slide with its tissue outlined and everything else darkened.

    Args:
        picture: (H, W, 3) uint8 RGB, the whole slide at any scale.
        tissue: Its mask, looked up at the centre of each pixel of the picture.
        slide_size: Of level 0, pixels.
        slide_mpp: Resolution of level 0, micrometres per pixel.
    """
    per_slide_px = level0_px(1, mpp=slide_mpp, slide_mpp=tissue.mpp)
    rows, columns = (
        np.minimum(((np.arange(n) + 0.5) * slide_px / n * per_slide_px).astype(int), n_mask - 1)
        for n, slide_px, n_mask in zip(
            picture.shape[:2], slide_size[::-1], tissue.mask.shape, strict=True
        )
    )
    is_tissue = tissue.mask[np.ix_(rows, columns)]
    inner = cv2.erode(is_tissue.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=1)
    shown = np.where(is_tissue[..., None], picture, picture * OUTSIDE)
    shown[is_tissue & (inner == 0)] = OUTLINE
    return shown.astype(np.uint8)


def _cell(row: SlideRow, thumbnail: Pixels, tissue: TissueMask) -> Pixels:
    """A slide's two pictures above its caption, (h, w, 3), all cells of one size."""
    height, width = thumbnail.shape[:2]
    scale = min(PICTURE.width / width, PICTURE.height / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = np.asarray(cv2.resize(thumbnail, size, interpolation=cv2.INTER_AREA), np.uint8)
    slide_size = Size(row.width, row.height)
    pair = (picture, outlined(picture, tissue, slide_size=slide_size, slide_mpp=row.mpp))
    cell = Image.new(
        "RGB", (2 * PICTURE.width + 2 * GAP_PX, PICTURE.height + CAPTION_PX + GAP_PX), PAPER
    )
    for i, shown in enumerate(pair):
        cell.paste(Image.fromarray(shown), (i * (PICTURE.width + GAP_PX), 0))
    name = row.slide_id
    if len(name) > MAX_NAME:
        name = f"{name[: MAX_NAME // 2]}...{name[-MAX_NAME // 2 :]}"
    caption = (  # in ASCII: Pillow's own font has neither a micro sign nor a raised 2
        f"{name}   {tissue.mask.mean():.1%} tissue, {row.tissue_area_mm2:.3g} mm2, "
        f"{row.tissue_method}, {tissue.mpp:.3g} um/px"
    )
    font = ImageFont.load_default(FONT_PX)
    ImageDraw.Draw(cell).text((2, PICTURE.height + 2), caption, fill=INK, font=font)
    return np.asarray(cell)


def _write_sheet(path: Path, cells: Sequence[Pixels]) -> Path:
    height, width = cells[0].shape[:2]
    n_rows = ceil(len(cells) / COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * width + GAP_PX, n_rows * height + GAP_PX), PAPER)
    for i, cell in enumerate(cells):
        place = (GAP_PX + i % COLUMNS * width, GAP_PX + i // COLUMNS * height)
        sheet.paste(Image.fromarray(cell), place)
    with replace_whole(path) as beside:
        sheet.save(beside, format="PNG", optimize=True)
    return path
