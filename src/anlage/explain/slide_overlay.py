"""Overlays of scores on files: a pyramidal TIFF at the slide's scale, and a PNG with its legend."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import tifffile
from PIL import Image, ImageDraw, ImageFont

from anlage import __version__
from anlage.explain.slide_heat import (
    WHITE,
    WITHOUT_WEIGHT,
    Heatmap,
    Pixels,
    colours_of,
    halved,
    overlay_downsample,
)
from anlage.explain.slide_scores import ScoredTiles, TileScore
from anlage.files import replace_whole
from anlage.slides.overview import read_overview
from anlage.slides.reader import SlideReader

TIFF_TILE_PX = 256
SMALLEST_TILE_PX = 2  # of ours on the coarsest level of the pyramid
PNG_PX = 2048
LEGEND_PX, LEGEND_WIDTH, BAR_PX, BAR_LEFT = 76, 580, 300, 40
INK = (30, 28, 36)
MICROMETRES_PER_CM = 1e4


def read_backdrop(slide: SlideReader, tiles: ScoredTiles) -> Pixels:
    """The slide at the resolution of its overlay: (height, width, 3) uint8.

    Raises:
        SlideError: If it cannot be read.
    """
    downsample = overlay_downsample(tiles.slide_size, slide_mpp=tiles.slide_mpp)
    picture, _ = read_overview(slide, mpp=downsample * tiles.slide_mpp)
    width, height = Heatmap(tiles=tiles, score=tiles.scores[0], downsample=downsample).size
    return picture[:height, :width]


def write_tiff(
    path: Path, tiles: ScoredTiles, score: TileScore, picture: Pixels | None
) -> list[Heatmap]:
    """Write a pyramidal, tiled TIFF of a score over the slide, that QuPath and OpenSlide open.

    Pages are painted anew at each resolution, a row of 256 px tiles at a time, and compressed
    without loss. Their resolution tags say the size of a pixel; a pixel of the first page is a
    whole number of level-0 pixels, and its origin is the slide's.

    Args:
        path: File to write.
        tiles: Where the tiles lie.
        score: Which of their scores.
        picture: As ``read_backdrop`` gives it; None for white.

    Returns:
        What was painted on each page, finest first.
    """
    downsample = overlay_downsample(tiles.slide_size, slide_mpp=tiles.slide_mpp)
    heatmap = Heatmap(tiles=tiles, score=score, downsample=downsample)
    pages: list[Heatmap] = []
    with replace_whole(path) as beside, tifffile.TiffWriter(beside, bigtiff=False) as writer:
        while True:
            _write_page(writer, heatmap, picture, is_first=not pages)
            pages.append(heatmap)
            coarser = 2 * heatmap.downsample
            is_small = max(heatmap.size) <= TIFF_TILE_PX
            if is_small or tiles.edge_level0_px / coarser < SMALLEST_TILE_PX:
                return pages
            heatmap = replace(heatmap, downsample=coarser)
            picture = None if picture is None else halved(picture)


def _write_page(
    writer: tifffile.TiffWriter, heatmap: Heatmap, picture: Pixels | None, *, is_first: bool
) -> None:
    per_cm = MICROMETRES_PER_CM / heatmap.mpp
    writer.write(
        _blocks(heatmap, picture),
        shape=(heatmap.size.height, heatmap.size.width, 3),
        dtype=np.uint8,
        photometric="rgb",
        tile=(TIFF_TILE_PX, TIFF_TILE_PX),
        compression="adobe_deflate",
        resolution=(per_cm, per_cm),
        resolutionunit="CENTIMETER",
        subfiletype=0 if is_first else 1,
        software=f"anlage {__version__}",
        metadata=None,
    )


def _blocks(heatmap: Heatmap, picture: Pixels | None) -> Iterator[Pixels]:
    """The page in tiles, row by row; what reaches over the edge is white."""
    width, height = heatmap.size
    for top in range(0, height, TIFF_TILE_PX):
        bottom = min(top + TIFF_TILE_PX, height)
        band = heatmap.over(picture, top, bottom)
        for left in range(0, width, TIFF_TILE_PX):
            part = band[:, left : left + TIFF_TILE_PX]
            block = np.full((TIFF_TILE_PX, TIFF_TILE_PX, 3), WHITE, np.uint8)
            block[: part.shape[0], : part.shape[1]] = part
            yield block


def write_png(path: Path, tiles: ScoredTiles, score: TileScore, picture: Pixels | None) -> Heatmap:
    """Write a PNG of at most 2,048 px: the score over the slide, and its legend below.

    Args:
        path: File to write.
        tiles: Where the tiles lie.
        score: Which of their scores.
        picture: As ``read_backdrop`` gives it; None for white.

    Returns:
        What was painted; its pixels are the file's, from the upper left corner on.
    """
    heatmap, under = reduced(tiles, score, picture, longest_px=PNG_PX)
    with replace_whole(path) as beside:
        whole = _above(heatmap.whole(under), legend(score))
        Image.fromarray(whole).save(beside, format="png")
    return heatmap


def reduced(
    tiles: ScoredTiles, score: TileScore, picture: Pixels | None, *, longest_px: int
) -> tuple[Heatmap, Pixels | None]:
    """A score and the slide at the overlay's resolution, halved until they are small enough.

    Args:
        tiles: Where the tiles lie.
        score: Which of their scores.
        picture: As ``read_backdrop`` gives it, or None.
        longest_px: Most pixels of the longer side.

    Returns:
        What to paint, and the picture to paint it on.
    """
    downsample = overlay_downsample(tiles.slide_size, slide_mpp=tiles.slide_mpp)
    heatmap = Heatmap(tiles=tiles, score=score, downsample=downsample)
    while max(heatmap.size) > longest_px:
        heatmap = replace(heatmap, downsample=2 * heatmap.downsample)
        picture = None if picture is None else halved(picture)
    return heatmap, picture


def legend(score: TileScore) -> Pixels:
    """The colours of ranks with the weights that stand there: (76, 580, 3) uint8 RGB."""
    strip = Image.new("RGB", (LEGEND_WIDTH, LEGEND_PX), (WHITE,) * 3)
    draw, font = ImageDraw.Draw(strip), ImageFont.load_default(size=13)
    draw.text((8, 4), f"{score.title}: percentile of tiles, and weight", fill=INK, font=font)
    ranks = (np.arange(BAR_PX) + 0.5) / BAR_PX
    bar = np.broadcast_to(colours_of(ranks), (16, BAR_PX, 3))
    strip.paste(Image.fromarray(np.ascontiguousarray(bar)), (BAR_LEFT, 26))
    weights = score.weight_L[score.weight_L > 0]
    for share in (0, 50, 100):
        x = BAR_LEFT + BAR_PX * share // 100
        weight = f"{np.percentile(weights, share):.2g}" if len(weights) else "-"
        draw.text((x, 44), f"{share}%", fill=INK, font=font, anchor="ma")
        draw.text((x, 59), weight, fill=INK, font=font, anchor="ma")
    if score.n_weighted < len(score.weight_L):
        draw.rectangle((386, 26, 402, 42), fill=WITHOUT_WEIGHT)
        without = 1 - score.n_weighted / len(score.weight_L)
        draw.text((410, 26), f"no weight ({without:.0%} of tiles)", fill=INK, font=font)
    return np.asarray(strip, np.uint8)


def _above(picture: Pixels, below: Pixels) -> Pixels:
    """One picture above another, white beside the narrower."""
    width = max(picture.shape[1], below.shape[1])
    padded = [
        cv2.copyMakeBorder(
            part, 0, 0, 0, width - part.shape[1], cv2.BORDER_CONSTANT, value=(WHITE,) * 3
        )
        for part in (picture, below)
    ]
    return np.concatenate(padded).astype(np.uint8)
