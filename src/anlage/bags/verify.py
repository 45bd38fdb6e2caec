"""What is wrong with a folder of bags: damaged, half-written, stale, mixed, missing ones."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from anlage.bags.bag import BagAttributes, BagHeader
from anlage.bags.store import feature_blocks, half_written, has_bag, list_bags
from anlage.errors import BagError, CatalogueError
from anlage.progress import meter
from anlage.slides.catalogue import Catalogue, SlideRow
from anlage.slides.storage.location import is_remote
from anlage.tiles.grid import tile_grid
from anlage.tiles.spec import TileSpec

RECORD = "embedding.json"
Kind = Literal["damaged", "half-written", "stale", "mixed", "missing"]
GRID = ("mpp", "tile_px", "stride_px", "min_tissue")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        kind: Which kind of thing.
        place: The bag; of a missing one its slide.
        reason: What was found, and what to do.
    """

    kind: Kind
    place: str
    reason: str


@dataclass(slots=True)
class VerifyResult:
    """What a folder holds.

    Attributes:
        n_bags: Bags that were read.
        n_tiles: Tiles in those that are whole.
        findings: What is wrong, in the order of the slides.
    """

    n_bags: int = 0
    n_tiles: int = 0
    findings: list[Finding] = field(default_factory=list)


def verify_bags(
    folder: str | Path,
    *,
    slides: Catalogue | None = None,
    encoder_fingerprint: str | None = None,
) -> VerifyResult:
    """Read every bag of a folder or URL and say what is wrong; nothing is changed.

    A bag is *damaged* if it cannot be read, its checksum does not match or a feature is not finite;
    *stale* if it is of another encoder, grid or colour than ``embedding.json`` beside it says (or
    than ``encoder_fingerprint``), or of another slide, tissue mask or none of the catalogue;
    *mixed* if it differs from most of the folder, where nothing says what is right.

    Args:
        folder: Bags, one a slide.
        slides: Catalogue that they are to be compared with; its slides without a bag are missing.
        encoder_fingerprint: The encoder that they should be of.

    Raises:
        BagError: If there is no such folder, or it cannot be listed.
    """
    result = VerifyResult()
    places = list_bags(folder)
    result.findings += [
        Finding("half-written", str(part), "its writer was killed or is still at work.")
        for part in half_written(folder)
    ]
    headers: dict[str, BagHeader] = {}
    with meter("verify", total=len(places), unit="bags") as progress:
        for slide_id, place in places.items():
            _read(place, slide_id, headers, result)
            progress.advance()
    expected = _expected(folder, headers, encoder_fingerprint)
    for slide_id, header in headers.items():
        reason = expected.difference(header.attributes)
        if reason:
            result.findings.append(Finding(expected.kind, places[slide_id], reason))
        elif slides is not None:
            _compare(header, places[slide_id], slides, result)
    if slides is not None:
        result.findings += [
            Finding("missing", row.slide_id, "has no bag. Run `embed tiles` again.")
            for row in slides.iter_rows()
            if row.slide_id not in places
        ]
    return result


def _read(place: str, slide_id: str, headers: dict[str, BagHeader], result: VerifyResult) -> None:
    try:
        if not has_bag(place):
            reason = "its writer was killed or is still at work: it has no zarr.json."
            result.findings.append(Finding("half-written", place, reason))
            return
        header = _whole(place, slide_id)
    except BagError as error:
        result.findings.append(Finding("damaged", place, error.message))
        return
    headers[slide_id] = header
    result.n_bags += 1
    result.n_tiles += len(header.coords)


def _whole(place: str, slide_id: str) -> BagHeader:
    """The header of a bag all of which was read.

    Raises:
        BagError: If anything in it is wrong.
    """
    header, blocks = feature_blocks(place)
    if header.slide_id != slide_id:
        raise BagError(place, f"is the bag of slide {header.slide_id!r}. Rename it.")
    first = 0
    for block in blocks:
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            tile = first + int(np.argmin(finite))
            msg = f"holds NaN or an infinity in tile {tile}. Delete it and embed the slide again."
            raise BagError(place, msg)
        first += len(block)
    return header


@dataclass(frozen=True, slots=True)
class _Expected:
    """What the bags of a folder ought to say, and by whom."""

    kind: Kind
    source: str
    values: Mapping[str, Any]

    def difference(self, made: BagAttributes) -> str | None:
        for name, wanted in self.values.items():
            found = getattr(made, name)
            if found != wanted:
                return f"was made with {name} {found}; {self.source} {wanted}. Embed it again."
        return None


def _expected(
    folder: str | Path, headers: Mapping[str, BagHeader], encoder_fingerprint: str | None
) -> _Expected:
    kind: Kind = "stale"
    values, source = _recorded(folder), f"{RECORD} says"
    if not values:
        names = ("encoder_fingerprint", "colour", *GRID)
        found = Counter(
            tuple(getattr(header.attributes, name) for name in names) for header in headers.values()
        )
        values = dict(zip(names, found.most_common(1)[0][0], strict=True)) if found else {}
        source, kind = "most bags here say", "mixed"
    if encoder_fingerprint is not None:
        values = {**values, "encoder_fingerprint": encoder_fingerprint}
        kind, source = "stale", "the encoder named has"
    return _Expected(kind, source, values)


def _recorded(folder: str | Path) -> dict[str, Any]:
    """What ``embedding.json`` beside the bags says of them; nothing where it is not there."""
    if is_remote(str(folder)) or not (Path(folder) / RECORD).is_file():
        return {}
    path = Path(folder) / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        tiles = record["tiles"]
        return {
            "encoder_fingerprint": record["encoder_fingerprint"],
            "colour": record["colour"],
            "mpp": tiles["mpp"],
            "tile_px": tiles["size_px"],
            "stride_px": tiles["stride_px"],
            "min_tissue": tiles["min_tissue"],
        }
    except (ValueError, KeyError, TypeError) as error:
        msg = f"is damaged ({error!r}). Delete it; `embed tiles` writes it anew."
        raise BagError(path, msg) from error


def _compare(header: BagHeader, place: str, slides: Catalogue, result: VerifyResult) -> None:
    """Note where a bag is not of the catalogue's slide, or of other tissue than its mask."""
    made = header.attributes
    if header.slide_id not in slides:
        reason = f"{slides.path.name} has no slide {header.slide_id!r} any more. Delete the bag."
        result.findings.append(Finding("stale", place, reason))
        return
    row = slides.row(header.slide_id)
    if row.fingerprint != made.slide_fingerprint:
        reason = "the slide's file has changed since. Delete the bag and embed the slide again."
    elif abs(row.mpp - made.slide_mpp) > 1e-9 * row.mpp:
        reason = f"the slide had mpp {made.slide_mpp}; it has {row.mpp} now. Embed it again."
    elif _moved(header, row, slides):
        reason = "the tissue mask gives other tiles now. Delete the bag and embed the slide again."
    else:
        return
    result.findings.append(Finding("stale", place, reason))


def _moved(header: BagHeader, row: SlideRow, slides: Catalogue) -> bool:
    """Whether the mask gives other corners now; of a grid that nobody knows this is not said."""
    made = header.attributes
    if made.stride_px is None or made.min_tissue is None:
        return False
    spec = TileSpec(
        size_px=made.tile_px, mpp=made.mpp, stride_px=made.stride_px, min_tissue=made.min_tissue
    )
    tissue = slides.mask(row.slide_id)
    try:
        corners = tile_grid(
            tissue.mask,
            mask_mpp=tissue.mpp,
            slide_mpp=row.mpp,
            spec=spec,
            slide_size=(row.width, row.height),
        )
    except ValueError as error:
        raise CatalogueError(slides.path, f"slide {row.slide_id!r}: {error}") from error
    return not np.array_equal(corners, header.coords)
