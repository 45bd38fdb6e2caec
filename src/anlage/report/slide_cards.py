"""A card for each slide: its picture, tissue and tiles, and what the catalogue says of it."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anlage.bags.store import read_bag_header
from anlage.errors import AnlageError, BagError
from anlage.geometry import level0_px
from anlage.report.contents import Contents
from anlage.report.found_files import without_folders
from anlage.report.pictures import jpeg_uri, outline_path, squares_path
from anlage.report.provenance_chain import trained_on
from anlage.slides.catalogue import Catalogue, SlideRow
from anlage.training.tile_config import TilePretrainConfig
from anlage.training.tile_feed import tile_sampler

LOGGER = logging.getLogger(__name__)
MOST_CARDS = 36
MOST_SORTED = 10_000  # slides among which those of the cards are chosen
MOST_DRAWN = 250
MOST_SAMPLED_SLIDES = 500  # of more, few cards would show a tile that was drawn
MOST_GRID_TILES = 4000  # squares a card draws
SOURCES = {
    "catalogue": "given in the catalogue",
    "vendor": "from the scanner",
    "tiff": "from the TIFF tags",
    "objective": "estimated from the objective",
}

Square = tuple[int, int, float]


@dataclass(frozen=True, kw_only=True)
class SlideCard:
    """One slide.

    Attributes:
        slide_id: Its name.
        split: As in the catalogue; empty if it has none.
        is_trained_on: Whether the run used it.
        picture: Data URI of the thumbnail; None if it is damaged.
        width: Of level 0, pixels.
        height: Of level 0, pixels.
        outline: SVG path of the tissue's outline, level-0 pixels.
        drawn: SVG path of the tiles drawn in pretraining.
        grid: SVG path of the tiles that were embedded.
        n_drawn: How many of the first draws fell on this slide.
        n_grid: Tiles embedded.
        facts: Name and value of what else is known.
        spoken: The picture in words.
    """

    slide_id: str
    split: str
    is_trained_on: bool
    picture: str | None
    width: int
    height: int
    outline: str
    drawn: str
    grid: str
    n_drawn: int
    n_grid: int
    facts: tuple[tuple[str, str], ...]
    spoken: str


@dataclass(frozen=True, kw_only=True)
class SlidesSection:
    """All cards and the slides refused.

    Attributes:
        cards: At most 36, those trained on first.
        n_slides: Slides in the catalogue.
        n_drawn: How many draws of the run are shown.
        refused: Name and reason of each slide refused.
    """

    cards: tuple[SlideCard, ...]
    n_slides: int
    n_drawn: int
    refused: tuple[tuple[str, str], ...]


def slides_section(contents: Contents) -> SlidesSection | None:
    """Cards of the catalogue's slides, and who was refused; None without a catalogue."""
    if contents.catalogue is None:
        return None
    drawn = _drawn(contents.catalogue, contents)
    seen = trained_on(contents)
    rows = sorted(
        contents.catalogue.spread(MOST_SORTED).rows(),
        key=lambda row: (row.slide_id not in seen, row.split or "~", row.tissue or "~"),
    )
    cards = tuple(
        _card(row, contents, drawn.get(row.slide_id, []), is_trained_on=row.slide_id in seen)
        for row in _spread(rows, MOST_CARDS)
    )
    n_drawn = sum(len(squares) for squares in drawn.values())
    return SlidesSection(
        cards=cards, n_slides=len(contents.catalogue), n_drawn=n_drawn, refused=_refused(contents)
    )


def _refused(contents: Contents) -> tuple[tuple[str, str], ...]:
    """Name and reason of what was refused by indexing or, later, by embedding."""
    reasons = {refused.uri: refused.reason for refused in contents.refused}
    embedding = contents.embedding or {}
    for slide in embedding.get("refused", []):
        reasons.setdefault(str(slide.get("uri")), f"not embedded: {slide.get('reason')}")
    for slide_id in embedding.get("empty", []):
        reasons.setdefault(str(slide_id), "not embedded: no tile holds enough tissue")
    return tuple(
        (Path(uri).name if Path(uri).is_absolute() else uri, without_folders(reason))
        for uri, reason in reasons.items()
    )


def _spread(rows: Sequence[SlideRow], most: int) -> list[SlideRow]:
    """All rows, or ``most`` of them evenly apart."""
    if len(rows) <= most:
        return list(rows)
    return [rows[len(rows) * k // most] for k in range(most)]


def _card(
    row: SlideRow, contents: Contents, drawn: list[Square], *, is_trained_on: bool
) -> SlideCard:
    assert contents.catalogue is not None
    picture, outline = None, ""
    try:
        picture = jpeg_uri(contents.catalogue.thumbnail(row.slide_id))
        tissue = contents.catalogue.mask(row.slide_id)
        per_mask_px = level0_px(1, mpp=tissue.mpp, slide_mpp=row.mpp)
        outline = outline_path(tissue.mask, per_mask_px=per_mask_px)
    except AnlageError as error:
        LOGGER.warning("%s", error)
    grid = _grid(contents, row.slide_id)
    width_mm, height_mm = (px * row.mpp / 1000 for px in (row.width, row.height))
    size = f"{width_mm:.1f} by {height_mm:.1f} mm"
    facts = {
        "Organ": (row.tissue or "").replace("_", " "),
        "Stain": row.stain or "",
        "Size": size,
        "Resolution": f"{row.mpp:.3g} µm/px, {SOURCES.get(row.mpp_source, row.mpp_source)}",
        "Tissue": f"{row.tissue_area_mm2:.2f} mm²",
        "Diagnosis": row.labels.get("diagnosis", ""),
        "Tiles": _tiles_in_words(len(drawn), len(grid)),
    }
    return SlideCard(
        slide_id=row.slide_id,
        split=row.split or "",
        is_trained_on=is_trained_on,
        picture=picture,
        width=row.width,
        height=row.height,
        outline=outline,
        drawn=squares_path(drawn),
        grid=squares_path(grid[:MOST_GRID_TILES]),
        n_drawn=len(drawn),
        n_grid=len(grid),
        facts=tuple((name, value) for name, value in facts.items() if value),
        spoken=f"Slide {row.slide_id}, {size}, with its tissue outlined and its tiles.",
    )


def _tiles_in_words(n_drawn: int, n_grid: int) -> str:
    parts = [f"{n_grid:,} embedded"] if n_grid else []
    return ", ".join([*parts, *([f"{n_drawn} drawn"] if n_drawn else [])])


def _drawn(catalogue: Catalogue, contents: Contents) -> dict[str, list[Square]]:
    """The run's first draws on each slide, drawn again: a draw is a function of seed and number."""
    if contents.run is None or len(catalogue) > MOST_SAMPLED_SLIDES:
        return {}
    try:
        config = TilePretrainConfig.model_validate(contents.run["config"])
        split = config.tiles.split
        slides = catalogue.select(split=split) if split else catalogue
        sampler = tile_sampler(config, slides)
        n_tiles = min(contents.n_steps * config.batch_size, MOST_DRAWN)
        tiles = [sampler.draw(g) for g in range(n_tiles)]
    except (AnlageError, ValueError) as error:
        LOGGER.warning("the run's tiles cannot be drawn again: %s", error)
        return {}
    squares: dict[str, list[Square]] = defaultdict(list)
    for tile in tiles:
        edge = level0_px(tile.size_px, mpp=tile.mpp, slide_mpp=catalogue.row(tile.slide_id).mpp)
        squares[tile.slide_id].append((tile.x, tile.y, edge))
    return squares


def _grid(contents: Contents, slide_id: str) -> list[Square]:
    """Tiles of the slide's bag."""
    if slide_id not in contents.bags:
        return []
    try:
        header = read_bag_header(contents.bags[slide_id])
    except BagError as error:
        LOGGER.warning("%s", error)
        return []
    edge = header.attributes.tile_level0_px
    return [(x, y, edge) for x, y in header.coords.tolist()]
