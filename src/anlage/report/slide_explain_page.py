"""One static page of where a slide model looks: scores over the slide, heads, top tiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PureWindowsPath

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from anlage import __version__
from anlage.explain.slide_explanation import SlideExplanation
from anlage.explain.slide_files import WrittenSlide, head_name, told_of
from anlage.explain.slide_heat import Pixels, colours_of
from anlage.explain.slide_overlay import reduced
from anlage.explain.slide_scores import ScoredTiles, TileScore, share_of_top
from anlage.explain.slide_tiles import ShownTile
from anlage.files import write_text_whole
from anlage.report.pictures import jpeg_uri, png_uri

TEMPLATE = "slide_explain.html.jinja"
MAP_PX, HEAD_PX, TILE_PX, BAR_PX = 1024, 512, 224, 256
OPAQUE = 255


@dataclass(frozen=True, kw_only=True)
class MapPicture:
    """A score as colours, transparent where no tile is.

    Attributes:
        uri: Its data URI.
        width: Pixels.
        height: Pixels.
        name: What it is of.
        note: What stands below it.
    """

    uri: str
    width: int
    height: int
    name: str
    note: str


@dataclass(frozen=True, kw_only=True)
class TilePicture:
    """One of the top or bottom tiles.

    Attributes:
        uri: Its data URI.
        name: Side and place.
        weight: Its score, in words.
        rank: Its percentile, in words.
        corner: x and y, level-0 pixels.
    """

    uri: str
    name: str
    weight: str
    rank: str
    corner: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class ScoreSection:
    """One score that has a section of its own.

    Attributes:
        id: Of the section.
        map: Over the whole slide.
        marks: Percentile and weight at points of the colour bar.
        top: Tiles with the most weight.
        bottom: Tiles with the least above 0.
        n_without: Tiles without weight.
    """

    id: str
    map: MapPicture
    marks: tuple[tuple[str, str], ...]
    top: tuple[TilePicture, ...]
    bottom: tuple[TilePicture, ...]
    n_without: int


def write_slide_explain_page(
    explanation: SlideExplanation, written: WrittenSlide, page: Path
) -> Path:
    """Write one HTML file that opens offline and fetches nothing.

    Args:
        explanation: What to show.
        written: The files beside it, and the pixels of slide and tiles.
        page: The file.

    Returns:
        ``page``.
    """
    environment = Environment(
        loader=PackageLoader("anlage.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    tiles = explanation.tiles
    _, under = reduced(tiles, tiles.scores[0], written.picture, longest_px=MAP_PX)
    text = environment.get_template(TEMPLATE).render(
        explanation=explanation,
        model=_model(explanation),
        tiles=tiles,
        picture="" if under is None else jpeg_uri(under),
        bar=_bar(),
        sections=list(_sections(tiles, written)),
        heads=[_map(tiles, s, head_name(s), longest_px=HEAD_PX) for s in tiles.heads],
        files=written.files,
        downsample=written.downsample,
        version=__version__,
        written=datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
    )
    write_text_whole(page, text)
    return page


def _model(explanation: SlideExplanation) -> str:
    """The model's own name, without the folders it lies in, since a page travels; and its hash."""
    preset, equals, place = explanation.model.rpartition("=")
    preset, name = (PureWindowsPath(text).name for text in (preset, place))  # knows both slashes
    return f"{preset}{equals}{name} ({explanation.facts['model_fingerprint'][:12]})"


def _sections(tiles: ScoredTiles, written: WrittenSlide) -> Iterator[ScoreSection]:
    for score in tiles.main:
        shown = written.shown.get(score.name, [])
        yield ScoreSection(
            id=f"score-{score.name}",
            map=_map(tiles, score, score.title, longest_px=MAP_PX),
            marks=_marks(score),
            top=_side(shown, "top"),
            bottom=_side(shown, "bottom"),
            n_without=len(tiles) - score.n_weighted,
        )


def _map(tiles: ScoredTiles, score: TileScore, name: str, *, longest_px: int) -> MapPicture:
    heatmap, _ = reduced(tiles, score, None, longest_px=longest_px)
    note = told_of(score)
    if score.n_weighted:
        top = share_of_top(score.weight_L)
        note += f" of the attention; the top 1% of tiles hold {top:.0%} of that"
    return MapPicture(
        uri=png_uri(heatmap.transparent()),
        width=heatmap.size.width,
        height=heatmap.size.height,
        name=name,
        note=note,
    )


def _marks(score: TileScore) -> tuple[tuple[str, str], ...]:
    weights = score.weight_L[score.weight_L > 0]
    if len(weights) == 0:
        return ()
    return tuple(
        (f"{share}%", f"{np.percentile(weights, share):.2g}") for share in (0, 25, 50, 75, 100)
    )


def _side(shown: Sequence[ShownTile], side: str) -> tuple[TilePicture, ...]:
    return tuple(
        TilePicture(
            uri=jpeg_uri(_thumbnail(tile.pixels)),
            name=f"{side} {tile.place}" + ("" if tile.is_readable else ", unreadable"),
            weight=f"{tile.weight:.3g}",
            rank=f"{tile.rank:.1%}",
            corner=tile.corner,
        )
        for tile in shown
        if tile.side == side
    )


def _thumbnail(pixels: Pixels) -> Pixels:
    if len(pixels) <= TILE_PX:
        return pixels
    return np.asarray(
        cv2.resize(pixels, (TILE_PX, TILE_PX), interpolation=cv2.INTER_AREA), np.uint8
    )


def _bar() -> str:
    """The palette as a data URI, from rank 0 to 1."""
    colours = colours_of((np.arange(BAR_PX) + 0.5) / BAR_PX)[None]
    return png_uri(np.dstack([colours, np.full(colours.shape[:2], OPAQUE, np.uint8)]))
