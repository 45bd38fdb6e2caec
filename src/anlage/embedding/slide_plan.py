"""What is to be embedded: which slides still lack their bag, and which tiles a slide has."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anlage import __version__
from anlage.bags.store import BagAttributes, read_bag_header
from anlage.encoders.tile_encoder import TileEncoder
from anlage.errors import BagError, CatalogueError
from anlage.progress import meter
from anlage.provenance import versions
from anlage.slides.catalogue import Catalogue, SlideRow
from anlage.slides.colour import Colour
from anlage.slides.indexing.found_slide import Refused
from anlage.tiles.grid import tile_grid
from anlage.tiles.spec import TileSpec


@dataclass(slots=True, eq=False)
class SlideJob:
    """One slide on its way to a bag.

    Attributes:
        row: The slide in the catalogue.
        corners: (L, 2) int64 tiles to embed, level-0 pixels.
        features: (L, D) float32, filled batch by batch.
        n_embedded: Rows of ``features`` that are filled.
        icc_profile: What the bag says of the slide's colour profile; set when it is read.
        reason: Why the slide is refused; None while nothing is wrong.
    """

    row: SlideRow
    corners: NDArray[np.int64]
    features: NDArray[np.float32]
    n_embedded: int = 0
    icc_profile: str = ""
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Which slides of a catalogue are to be embedded.

    Attributes:
        todo: slide_ids without a bag.
        skipped: Names of slides whose bag is there and is what this run would make.
        refused: Slides that cannot have a bag.
    """

    todo: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)


def bag_path(output: Path, slide_id: str) -> Path:
    """The bag of a slide."""
    return output / f"{slide_id}.h5"


def bag_attributes(
    row: SlideRow,
    encoder: TileEncoder,
    spec: TileSpec,
    *,
    colour: Colour,
    icc_profile: str = "",
) -> BagAttributes:
    """What the bag of one slide says about itself."""
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
        colour=colour,
        icc_profile=icc_profile,
        precision=encoder.precision,
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
    catalogue: Catalogue, output: Path, *, encoder: TileEncoder, spec: TileSpec, colour: Colour
) -> Plan:
    """Sort a catalogue's slides by whether their bag is already there.

    Raises:
        BagError: If a bag is damaged, or was made by another encoder, grid or slide: before
            anything is embedded, so that no folder ever mixes the two.
    """
    plan = Plan()
    with meter("check bags", total=len(catalogue), unit="slides") as progress:
        for row in catalogue.iter_rows():
            path = bag_path(output, row.slide_id)
            if path.parent != output or path.stem != row.slide_id:
                reason = f"its slide_id {row.slide_id!r} cannot be a file name. Rename it."
                plan.refused.append(Refused(row.uri, reason))
            elif path.exists():
                wanted = bag_attributes(row, encoder, spec, colour=colour)
                _refuse_other_bag(path, wanted, catalogue, row, spec)
                plan.skipped.append(row.slide_id)
            else:
                plan.todo.append(row.slide_id)
            progress.advance()
    return plan


def _refuse_other_bag(  # noqa: PLR0917 - private, each is a different thing
    path: Path, wanted: BagAttributes, catalogue: Catalogue, row: SlideRow, spec: TileSpec
) -> None:
    header = read_bag_header(path)
    remedy = "Name another folder with -o, or delete the bag to have it made anew."
    different = wanted.differences(header.attributes)
    if different:
        name = different[0]
        was, now = getattr(header.attributes, name), getattr(wanted, name)
        msg = f"was made with {name} {was}; this run has {now}. {remedy}"
        raise BagError(path, msg)
    if not np.array_equal(header.coords, tiles_of(catalogue, row, spec)):
        msg = f"holds other tiles than the slide's tissue mask gives now. {remedy}"
        raise BagError(path, msg)
