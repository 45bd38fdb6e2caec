"""Everything that is written of an explained slide: table, GeoJSON, overlays, contact sheets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from anlage.explain.pictures import sheet
from anlage.explain.slide_explanation import SlideExplanation
from anlage.explain.slide_folder import RECORD, earlier_files
from anlage.explain.slide_geojson import write_geojson
from anlage.explain.slide_heat import Pixels
from anlage.explain.slide_overlay import read_backdrop, reduced, write_png, write_tiff
from anlage.explain.slide_scores import ScoredTiles, TileScore
from anlage.explain.slide_table import write_table
from anlage.explain.slide_tiles import ShownTile, read_top_and_bottom, write_contact_sheet
from anlage.files import replace_whole, write_json_whole
from anlage.progress import meter
from anlage.slides.reader import SlideReader

HEAD_PX = 320


@dataclass(frozen=True, kw_only=True, eq=False)
class WrittenSlide:
    """What was written of one slide, and the pixels that a page of it needs.

    Attributes:
        files: Each file by its name, with what it is.
        picture: (height, width, 3) uint8, the slide at the overlay's resolution; None without it.
        downsample: Level-0 pixels a pixel of the finest overlay.
        shown: Top and bottom tiles by the name of their score; empty without the slide.
    """

    files: Mapping[str, str]
    picture: Pixels | None
    downsample: float
    shown: Mapping[str, list[ShownTile]]


def write_slide_files(
    explanation: SlideExplanation, folder: Path, *, slide: SlideReader | None, n_shown: int
) -> WrittenSlide:
    """Write the scores of a slide's tiles in every form but the page.

    Args:
        explanation: The scores.
        folder: Where to; made if it is not there. What an earlier run on this slide wrote there,
            as its ``explain.json`` names it, is replaced, or removed if it is not written now.
        slide: The slide, for its pixels; None for overlays on white and no contact sheet.
        n_shown: Most top and most bottom tiles of a contact sheet; 0 for none.

    Returns:
        What was written.

    Raises:
        AnlageError: If the folder holds files of another slide.
        SlideError: If the slide cannot be read.
        OSError: If the disk is full or refuses.
    """
    tiles = explanation.tiles
    earlier = earlier_files(folder, tiles.slide_id)
    picture = None if slide is None else read_backdrop(slide, tiles)
    files = {"tiles.parquet": "every tile with its place and raw scores"}
    write_table(folder / "tiles.parquet", tiles, explanation.facts)
    name = f"{tiles.slide_id}.geojson"
    write_geojson(folder / name, tiles)
    files[name] = "the same for QuPath: tiles with measurements and classes"
    shown, overlays = {}, {}
    with meter("overlays", total=len(tiles.main), unit="scores") as progress:
        for score in tiles.main:
            overlays[score.name] = _write_overlays(folder, tiles, score, picture)
            files[f"overlay_{score.name}.tiff"] = f"pyramid at the slide's scale: {score.title}"
            files[f"overlay_{score.name}.png"] = f"picture with legend: {score.title}"
            if slide is not None and n_shown and score.n_weighted:
                shown[score.name] = read_top_and_bottom(slide, tiles, score, n=n_shown)
                write_contact_sheet(folder / f"tiles_{score.name}.png", shown[score.name])
                files[f"tiles_{score.name}.png"] = f"top and bottom tiles: {score.title}"
            progress.advance(note=score.name)
    if tiles.heads:
        _save(folder / "heads.png", heads_sheet(tiles, picture))
        files["heads.png"] = "every head beside the others"
    files[RECORD] = "what all of this was made from, and the scale of each overlay"
    for path in earlier:
        if path.name not in files:
            path.unlink()
    told = {"scores": _scores(tiles), "overlays": overlays, "files": list(files)}
    write_json_whole(folder / RECORD, explanation.facts | told)
    downsample = min(overlay["downsample"] for overlay in overlays.values())
    return WrittenSlide(files=files, picture=picture, downsample=downsample, shown=shown)


def heads_sheet(tiles: ScoredTiles, picture: Pixels | None) -> Pixels:
    """Small multiples: the slide once for each head, with how many tiles it sees."""
    names = [f"{head_name(score)}\n{told_of(score)}" for score in tiles.heads]
    _, under = reduced(tiles, tiles.heads[0], picture, longest_px=HEAD_PX)
    small = [reduced(tiles, score, None, longest_px=HEAD_PX)[0] for score in tiles.heads]
    maps = [heatmap.whole(under) for heatmap in small]
    return sheet(maps, names, cell_px=HEAD_PX)


def head_name(score: TileScore) -> str:
    """What a head is called beside the others of its layer."""
    return score.title.rpartition(", ")[2]


def told_of(score: TileScore) -> str:
    """How many tiles have weight, and how much they have together."""
    total = score.weight_L.sum(dtype=np.float64)
    return f"{score.n_weighted:,} of {len(score.weight_L):,} tiles hold {total:.0%}"


def _write_overlays(
    folder: Path, tiles: ScoredTiles, score: TileScore, picture: Pixels | None
) -> dict[str, Any]:
    pages = write_tiff(folder / f"overlay_{score.name}.tiff", tiles, score, picture)
    png = write_png(folder / f"overlay_{score.name}.png", tiles, score, picture)
    return {
        "downsample": pages[0].downsample,
        "mpp": pages[0].mpp,
        "png_downsample": png.downsample,
    }


def _scores(tiles: ScoredTiles) -> list[dict[str, Any]]:
    return [
        {
            "name": score.name,
            "title": score.title,
            "n_weighted": score.n_weighted,
            "total": float(score.weight_L.sum(dtype=np.float64)),
            "largest": float(score.weight_L.max()),
        }
        for score in tiles.scores
    ]


def _save(path: Path, picture: Pixels) -> None:
    with replace_whole(path) as beside:
        Image.fromarray(picture).save(beside, format="png")
