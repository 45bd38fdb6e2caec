"""What is to be embedded: which slides still lack their bag, and which tiles a slide has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anlage import __version__
from anlage.bags.store import (
    BagAttributes,
    BagHeader,
    bag_place,
    has_bag,
    list_bags,
    read_bag_header,
)
from anlage.embedding.encoder_facts import EncoderFacts
from anlage.embedding.patch_token_file import SUFFIX
from anlage.embedding.settings import EmbedSettings, departures
from anlage.encoders.tile_encoder import EncoderConfig, TileEncoder
from anlage.errors import BagError, CatalogueError
from anlage.progress import meter
from anlage.provenance import versions
from anlage.slides.catalogue import Catalogue, SlideRow
from anlage.slides.colour import Colour
from anlage.slides.indexing.found_slide import Refused
from anlage.slides.storage.location import is_remote
from anlage.tiles.grid import tile_grid
from anlage.tiles.spec import TileSpec


@dataclass(frozen=True, slots=True)
class Grid:
    """The tiles that an encoder gets; encoders of one grid see the same pixels.

    Attributes:
        spec: Their size, resolution, stride and tissue.
        colour: Their colours.
    """

    spec: TileSpec
    colour: Colour


def grid_of(settings: EmbedSettings, config: EncoderConfig) -> Grid:
    """The tiles that an encoder gets by these settings.

    Raises:
        ValueError: If they would overlap by their whole edge.
    """
    return Grid(settings.spec(config), settings.colour or config.colour)


@dataclass(frozen=True, slots=True)
class Plan:
    """Which slides of a catalogue are to be embedded.

    Attributes:
        todo: slide_ids without a bag, in the catalogue's order; values mean nothing.
        skipped: Names of slides whose bag is there and is what this run would make.
        empty: Those of them whose bag holds no tile.
        refused: Slides that cannot have a bag.
    """

    todo: dict[str, None] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)


def bag_made_before(  # noqa: PLR0917 - each is a different thing
    output: str | Path,
    wanted: BagAttributes,
    catalogue: Catalogue,
    row: SlideRow,
    grid: Grid,
    *,
    with_tokens: bool,
) -> BagHeader | None:
    """The header of a slide's bag; None where it, or its patch tokens, are still to be made.

    Raises:
        BagError: If there is a bag that is not what this run would make.
    """
    slide_id = row.slide_id
    if not is_remote(str(output)) and has_bag(bag_place(output, slide_id, store="zarr")):
        msg = "is there as Zarr, beside which a second bag would be made. Name another folder."
        raise BagError(bag_place(output, slide_id, store="zarr"), msg)
    if not has_bag(bag_place(output, slide_id)):
        return None
    header = _refuse_other_bag(output, wanted, catalogue, row, grid)
    if with_tokens and not _has_tokens(output, slide_id, n_tiles=len(header.coords)):
        return None
    return header


def _has_tokens(output: str | Path, slide_id: str, *, n_tiles: int) -> bool:
    path = Path(output) / f"{slide_id}{SUFFIX}"
    return path.exists() and len(np.load(path, mmap_mode="r")) == n_tiles


def bag_attributes(
    row: SlideRow, encoder: TileEncoder | EncoderFacts, grid: Grid, *, icc_profile: str = ""
) -> BagAttributes:
    """What the bag of one slide says about itself."""
    spec = grid.spec
    return BagAttributes(
        encoder_fingerprint=encoder.fingerprint,
        slide_fingerprint=row.fingerprint,
        mpp=spec.mpp,
        slide_mpp=row.mpp,
        slide_width_px=row.width,
        slide_height_px=row.height,
        tile_px=spec.size_px,
        stride_px=spec.stride_px,
        min_tissue=spec.min_tissue,
        mean=encoder.config.mean,
        std=encoder.config.std,
        colour=grid.colour,
        icc_profile=icc_profile,
        precision=encoder.precision,
        encoder_name=str(encoder.config.provenance.get("preset", "")),
        departures="; ".join(departures(encoder.config, spec, grid.colour)),
        versions=versions(),
        created_by=f"anlage {__version__}",
    )


def tiles_of(catalogue: Catalogue, row: SlideRow, spec: TileSpec) -> NDArray[np.int64]:
    """Corners of a slide's tiles with enough tissue, (L, 2) int64, level-0 pixels.

    Raises:
        CatalogueError: If the catalogue's masks are missing, or too coarse for such tiles.
    """
    tissue, size = catalogue.mask(row.slide_id), (row.width, row.height)
    try:
        return tile_grid(
            tissue.mask, mask_mpp=tissue.mpp, slide_mpp=row.mpp, spec=spec, slide_size=size
        )
    except ValueError as error:
        raise CatalogueError(catalogue.path, f"slide {row.slide_id!r}: {error}") from error


def plan_slides(
    catalogue: Catalogue,
    output: str | Path,
    *,
    encoder: TileEncoder | EncoderFacts,
    grid: Grid,
    with_tokens: bool = False,
) -> Plan:
    """Sort a catalogue's slides by whether their bag is already there.

    Raises:
        BagError: If a bag is damaged, or was made by another encoder, grid or slide: before
            anything is embedded, so that no folder ever mixes the two.
    """
    plan = Plan()
    is_listed = _listed(output)
    with meter("check bags", total=len(catalogue), unit="slides") as progress:
        for row in catalogue.iter_rows():
            if not _is_file_name(row.slide_id):
                reason = f"its slide_id {row.slide_id!r} cannot be a file name. Rename it."
                plan.refused.append(Refused(row.uri, reason))
            else:
                wanted, header = bag_attributes(row, encoder, grid), None
                if is_listed(row.slide_id):
                    header = bag_made_before(
                        output, wanted, catalogue, row, grid, with_tokens=with_tokens
                    )
                if header is None:
                    plan.todo[row.slide_id] = None
                else:
                    (plan.skipped if len(header.coords) else plan.empty).append(row.slide_id)
            progress.advance()
    return plan


def _listed(output: str | Path) -> Callable[[str], bool]:
    """Whether a slide may have a bag: at a URL one listing spares a question for each slide."""
    if not is_remote(str(output)):
        return lambda slide_id: True
    return list_bags(output).__contains__


def _is_file_name(slide_id: str) -> bool:
    try:
        bag_place("", slide_id)
    except ValueError:
        return False
    return True


def _refuse_other_bag(  # noqa: PLR0917 - each is a different thing
    output: str | Path, wanted: BagAttributes, catalogue: Catalogue, row: SlideRow, grid: Grid
) -> BagHeader:
    """The header of a slide's bag that is there.

    Raises:
        BagError: If it is not what this run would make.
    """
    path = bag_place(output, row.slide_id)
    header = read_bag_header(path)
    remedy = "Name another folder with -o, or delete the bag to have it made anew."
    different = wanted.differences(header.attributes)
    if different:
        name = different[0]
        was, now = getattr(header.attributes, name), getattr(wanted, name)
        msg = f"was made with {name} {was}; this run has {now}. {remedy}"
        raise BagError(path, msg)
    if not np.array_equal(header.coords, tiles_of(catalogue, row, grid.spec)):
        msg = f"holds other tiles than the slide's tissue mask gives now. {remedy}"
        raise BagError(path, msg)
    return header
