"""What other tools' files say of a slide's tiles, and the bag it makes with what they leave out.

Shape suffixes: L tiles of the slide, D embedding width.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from anlage import __version__
from anlage.bags.bag import NAMED, Bag, BagAttributes, attributes_from
from anlage.errors import BagError, CatalogueError
from anlage.slides.catalogue import Catalogue, SlideRow

OURS = "anlage"  # the attribute in which a file of another format keeps what it has no place for
SAME_WITHIN = 0.01  # relative, in which two statements of one length are the same
T = TypeVar("T", int, float)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class FoundTiles:
    """What a file of another tool says; None is what it does not say.

    Attributes:
        slide_id: By the file's name.
        features: (L, D) of any floating dtype.
        coords: (L, 2) upper-left corners (x, y), level-0 pixels.
        coords_um: (L, 2) the same in micrometres, where that is what the file has.
        tile_px: Tile edge, pixels of the tile that the encoder was given.
        tile_level0_px: Tile edge, level-0 pixels.
        tile_um: Tile edge, micrometres.
        stride_px: Step between corners, in the pixels of ``tile_px``.
        slide_size: Width and height of level 0, pixels.
        encoder_name: What the file calls the encoder.
        attributes: All of it, of a file that anlage wrote.
    """

    slide_id: str
    features: NDArray[Any]
    coords: NDArray[np.int64] | None = None
    coords_um: NDArray[np.floating[Any]] | None = None
    tile_px: int | None = None
    tile_level0_px: float | None = None
    tile_um: float | None = None
    stride_px: int | None = None
    slide_size: tuple[int, int] | None = None
    encoder_name: str | None = None
    attributes: BagAttributes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderIdentity:
    """An encoder whose embeddings were compared with a file's.

    Attributes:
        fingerprint: As in BagAttributes.
        name: What people call it.
        mean: Of its transform.
        std: Of its transform.
        colour: Colours it reads tiles in.
        tile_px: Edge to which it was given the tiles, pixels.
    """

    fingerprint: str
    name: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    colour: str
    tile_px: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What the user says beside a file of another tool, to fill what it leaves out.

    Attributes:
        slides: The catalogue with the slides' resolution, size and fingerprints.
        encoder_name: What the encoder is called.
        tile_px: Tile edge, pixels.
        mpp: Resolution of the tiles, micrometres per pixel.
        encoder: An encoder that was compared, in place of a name.
    """

    slides: Catalogue | None = None
    encoder_name: str | None = None
    tile_px: int | None = None
    mpp: float | None = None
    encoder: EncoderIdentity | None = None


def bag_of(path: str | Path, found: FoundTiles, given: Given) -> Bag:
    """The bag of a slide from another tool's file; nothing in it is guessed.

    Args:
        path: The file, for errors.
        found: What it says.
        given: What the user adds. What both say has to be the same.

    Raises:
        BagError: If the two together leave something out (the text names the option that gives
            it), contradict each other, or corners lie outside the slide.
    """
    if found.attributes is not None and found.coords is not None:
        return Bag(found.slide_id, found.features, found.coords, found.attributes)
    row = _row(path, found, given)
    corners = _corners(path, found, row)
    tile_px = _agreed(path, "--tile-px", found.tile_px, given.tile_px)
    mpp = _agreed(path, "--mpp", _mpp(found, tile_px, row), given.mpp)
    stride_px = found.stride_px
    if given.encoder is not None and given.encoder.tile_px != tile_px:  # it was given them resized
        scale = given.encoder.tile_px / tile_px
        stride = None if stride_px is None else stride_px * scale
        stride_px = int(stride) if stride is not None and stride.is_integer() else None
        tile_px, mpp = given.encoder.tile_px, mpp / scale
    attributes = BagAttributes(
        slide_fingerprint=row.fingerprint,
        mpp=mpp,
        slide_mpp=row.mpp,
        slide_width_px=row.width,
        slide_height_px=row.height,
        tile_px=tile_px,
        stride_px=stride_px,
        min_tissue=None,
        precision="unknown",
        created_by=f"anlage {__version__}, from another tool's file",
        **_encoder(path, found, given),
    )
    return Bag(found.slide_id, found.features, corners, attributes)


def _row(path: str | Path, found: FoundTiles, given: Given) -> SlideRow:
    if given.slides is None:
        msg = "does not hold the slide's resolution and fingerprint. Give its catalogue (--slides)."
        raise BagError(path, msg)
    try:
        row = given.slides.row(found.slide_id)
    except CatalogueError as error:
        msg = f"is of slide {found.slide_id!r}, which {given.slides.path} does not have."
        raise BagError(path, f"{msg} Index that slide too.") from error
    if found.slide_size not in {None, (row.width, row.height)}:
        msg = f"is of a slide of {found.slide_size} px; the catalogue's {row.slide_id!r} has "
        raise BagError(path, f"{msg}({row.width}, {row.height}). It is of another file.")
    return row


def _mpp(found: FoundTiles, tile_px: int, row: SlideRow) -> float | None:
    if found.tile_level0_px is not None:
        return found.tile_level0_px * row.mpp / tile_px
    return None if found.tile_um is None else found.tile_um / tile_px


def _agreed(path: str | Path, option: str, found: T | None, given: T | None) -> T:
    """What the file says or, where it is silent, the user."""
    value = given if found is None else found
    if value is None:
        names = {"--tile-px": "how many pixels a tile has", "--mpp": "the tiles' resolution"}
        raise BagError(path, f"does not say {names[option]}. Give {option}.")
    if given is not None and abs(given - value) > SAME_WITHIN * value:
        raise BagError(path, f"says {value:g}, where {option} says {given:g}. Leave {option} out.")
    return value


def _encoder(path: str | Path, found: FoundTiles, given: Given) -> dict[str, Any]:
    if given.encoder is not None:
        encoder = given.encoder
        return {
            "encoder_fingerprint": encoder.fingerprint,
            "encoder_name": encoder.name,
            "mean": encoder.mean,
            "std": encoder.std,
            "colour": encoder.colour,
        }
    name = given.encoder_name or found.encoder_name
    if not name:
        raise BagError(path, "does not say which encoder made it. Give --encoder-name.")
    unknown = {"mean": None, "std": None}
    return {"encoder_fingerprint": f"{NAMED}{name}", "encoder_name": name, **unknown}


def _corners(path: str | Path, found: FoundTiles, row: SlideRow) -> NDArray[np.int64]:
    if found.coords is not None:
        corners = found.coords
    elif found.coords_um is not None:
        corners = np.round(found.coords_um.astype(np.float64) / row.mpp).astype(np.int64)
    else:
        msg = "has no coordinates, and none are made up. Name the folder that has them (--coords)."
        raise BagError(path, msg)
    outside = (corners < 0).any(axis=1) | (corners >= (row.width, row.height)).any(axis=1)
    if outside.any():
        tile = int(outside.argmax())
        msg = f"tile {tile} is at {tuple(corners[tile].tolist())}, outside the slide's "
        raise BagError(path, f"{msg}({row.width}, {row.height}) px. It is of another slide.")
    return corners


def ours_as_text(bag: Bag) -> str:
    """A bag's attributes as text, for a file of another format."""
    return json.dumps(bag.attributes.as_json(), sort_keys=True)


def ours_from_text(path: str | Path, text: object) -> BagAttributes | None:
    """The attributes that ``ours_as_text`` gave; None if there is no text.

    Raises:
        BagError: If it is not what that gave.
    """
    if text is None:
        return None
    try:
        stored = json.loads(str(text))
    except ValueError as error:
        msg = f"its attribute {OURS!r} is not JSON ({error}). Convert it again from its source."
        raise BagError(path, msg) from error
    if not isinstance(stored, dict):
        raise BagError(path, f"its attribute {OURS!r} is no JSON object. Convert it again.")
    return attributes_from(path, stored)


def rows_or_refuse(
    path: str | Path, features: NDArray[Any], coords: NDArray[Any] | None, *, what: str
) -> None:
    """Refuse arrays that are no tiles: not (L, D) numbers, or other corners than (L, 2).

    Raises:
        BagError: With the shapes.
    """
    is_rows = features.ndim == 2 and features.dtype.kind == "f"
    is_placed = coords is None or (coords.shape == (len(features), 2))
    if not is_rows or not is_placed:
        shape = "" if coords is None else f", coords {coords.shape}"
        msg = f"needs (L, D) features and (L, 2) coords; got {features.shape} {features.dtype}"
        raise BagError(path, f"{msg}{shape}. It is no {what}, or it is damaged.")
