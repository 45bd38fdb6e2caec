"""A bag in memory: the tile embeddings of one slide, where they lie, and what made them.

Shape suffixes: L tiles of the slide, D embedding width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anlage.errors import BagError
from anlage.geometry import level0_px

FORMAT = "bag/1"
FLOAT16_MAX = float(np.finfo(np.float16).max)
NOT_IDENTITY = (
    *("versions", "created_by", "precision", "icc_profile", "encoder_name"),
    "departures",  # follow from the encoder and the grid
)
ADDED_LATER = {  # true of older bags
    **{"colour": "stored", "icc_profile": "", "encoder_name": "", "departures": ""},
}
CHECKED_AT_ONCE = 8192  # tiles
NAMED = "named:"  # before the name of an encoder that nobody has fingerprinted


@dataclass(frozen=True, kw_only=True, slots=True)
class BagAttributes:
    """What a bag was made from, and how.

    Attributes:
        encoder_fingerprint: SHA-256 of the tile encoder's weights and transform; of a bag that was
            taken over from another tool ``named:`` and the name it gave.
        slide_fingerprint: The slide's fingerprint in its catalogue.
        mpp: Resolution of the tiles, micrometres per pixel.
        slide_mpp: Resolution of level 0, micrometres per pixel.
        slide_width_px: Width of level 0, pixels.
        slide_height_px: Height of level 0, pixels.
        tile_px: Tile edge, pixels at ``mpp``.
        stride_px: Step between corners, pixels at ``mpp``; None if another tool did not say it.
        min_tissue: Smallest tissue fraction of a kept tile; None likewise.
        mean: Mean that the transform took off each channel of pixels in [0, 1]; None likewise.
        std: Standard deviation by which it divided; None likewise.
        colour: Whether tiles were embedded as ``stored`` or in ``srgb``, by the slide's profile.
        icc_profile: With ``srgb``, the SHA-256 of the profile; "none" if the slide has none, so
            that its pixels stayed as stored. Else empty.
        precision: Arithmetic of the forward pass, ``fp32`` or ``bf16``; ``unknown`` likewise.
        encoder_name: What people call the encoder; empty if nobody said.
        departures: In what the tiles are not those that the encoder was trained on, in words;
            empty if in nothing.
        versions: Versions of the software that made it.
        created_by: The program that wrote it.
    """

    encoder_fingerprint: str
    slide_fingerprint: str
    mpp: float
    slide_mpp: float
    slide_width_px: int
    slide_height_px: int
    tile_px: int
    stride_px: int | None
    min_tissue: float | None
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    colour: str = "stored"
    icc_profile: str = ""
    precision: str = "fp32"
    encoder_name: str = ""
    departures: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    created_by: str = "anlage"

    @property
    def tile_level0_px(self) -> float:
        """Tile edge in level-0 pixels, not rounded."""
        return level0_px(self.tile_px, mpp=self.mpp, slide_mpp=self.slide_mpp)

    def differences(self, other: BagAttributes) -> list[str]:
        """Names of the attributes in which two bags are not the same thing.

        Versions, precision and the encoder's name say how a bag was made; they do not make it
        another bag.
        """
        names = [entry.name for entry in fields(self) if entry.name not in NOT_IDENTITY]
        return [name for name in names if getattr(self, name) != getattr(other, name)]

    def as_json(self) -> dict[str, Any]:
        """All attributes as JSON can hold them; ``attributes_from`` reads them back."""
        values = asdict(self)
        for name in ("mean", "std"):
            values[name] = None if values[name] is None else list(values[name])
        return values | {"versions": dict(self.versions)}


@dataclass(frozen=True, slots=True, eq=False)
class Bag:
    """The tiles of one slide as a sequence of embeddings.

    Attributes:
        slide_id: The slide's name in its catalogue.
        features: (L, D) float16 tile embeddings; L may be 0.
        coords: (L, 2) int64 upper-left corners (x, y), level-0 pixels.
        attributes: What the bag was made from.
    """

    slide_id: str
    features: NDArray[np.floating[Any]]
    coords: NDArray[np.int64]
    attributes: BagAttributes


@dataclass(frozen=True, slots=True, eq=False)
class BagHeader:
    """A bag without its features: enough to know what it is, whatever its size.

    Attributes:
        slide_id: The slide's name in its catalogue.
        width: Embedding width D.
        coords: (L, 2) int64 upper-left corners (x, y), level-0 pixels.
        attributes: What the bag was made from.
        content_sha256: SHA-256 over features and coords, the bag's own fingerprint.
    """

    slide_id: str
    width: int
    coords: NDArray[np.int64]
    attributes: BagAttributes
    content_sha256: str


def content_sha256(features: NDArray[np.float16], coords: NDArray[np.int64]) -> str:
    """SHA-256 over shapes and bytes of a bag's two arrays: the bag's own fingerprint."""
    digest = hashlib.sha256(repr((features.shape, coords.shape)).encode())
    digest.update(np.ascontiguousarray(features).data)
    digest.update(np.ascontiguousarray(coords).data)
    return digest.hexdigest()


def as_stored(place: str | Path, bag: Bag) -> Bag:
    """The bag in the types in which it is stored: float16 and int64.

    Raises:
        BagError: If a feature is not finite or does not fit float16; carries ``place``.
        ValueError: If features and coords are not (L, D) floats and (L, 2) integers.
    """
    features, coords = np.asarray(bag.features), np.asarray(bag.coords)
    if features.ndim != 2 or features.dtype.kind != "f":
        msg = f"write_bag: needs features (L, D) of floats; got {features.shape} {features.dtype}."
        raise ValueError(msg)
    if coords.shape != (len(features), 2) or coords.dtype.kind not in "iu":
        msg = (
            f"write_bag: needs coords ({len(features)}, 2) of integers, one row a tile; "
            f"got {coords.shape} {coords.dtype}."
        )
        raise ValueError(msg)
    _refuse_unstorable(place, features)
    stored = features.astype(np.float16, copy=False)
    return Bag(bag.slide_id, stored, coords.astype(np.int64, copy=False), bag.attributes)


def _refuse_unstorable(place: str | Path, features: NDArray[Any]) -> None:
    """Refuse what float16 would store as an infinity; up to halfway beyond, it rounds down."""
    blocks = (features[i : i + CHECKED_AT_ONCE] for i in range(0, len(features), CHECKED_AT_ONCE))
    if all(float(np.abs(block).max(initial=0)) < FLOAT16_MAX + 16 for block in blocks):
        return  # which NaN and infinities are not
    finite = np.isfinite(features)
    if not finite.all():
        tile = int(np.argmin(finite.all(axis=1)))
        rule, remedy = "finite features", "Check the encoder's weights on that tile"
    else:
        tile = int(np.abs(features).max(axis=1).argmax())
        rule = f"features within float16's {FLOAT16_MAX:g}"
        remedy = "Use an encoder that ends in a normalisation, or scale its output"
    value = features[tile][np.argmax(~finite[tile] | (np.abs(features[tile]) > FLOAT16_MAX))]
    raise BagError(place, f"needs {rule}; got {value} in tile {tile}. {remedy}.")


def trident_attributes(bag: Bag) -> dict[str, str | int]:
    """The attributes TRIDENT puts on ``coords``; magnification is 10 / mpp, rounded.

    CLAM reads ``patch_size`` pixels of level ``patch_level``; that level stands here only where it
    is level 0, so that CLAM refuses other bags as coordinates instead of reading other tiles.
    """
    made = bag.attributes
    found: dict[str, str | int] = {
        "name": bag.slide_id,
        "description": "(x, y) upper-left corner of each tile, level-0 pixels",
        "patch_size": made.tile_px,
        "patch_size_level0": round(made.tile_level0_px),
        "target_magnification": max(round(10 / made.mpp), 1),
        "level0_magnification": max(round(10 / made.slide_mpp), 1),
        "level0_width": made.slide_width_px,
        "level0_height": made.slide_height_px,
    }
    if made.stride_px is not None:
        found["overlap"] = max(made.tile_px - made.stride_px, 0)
    if abs(made.tile_level0_px - made.tile_px) < 0.5:
        found["patch_level"] = 0
    return found


def attributes_from(place: str | Path, stored: Mapping[str, Any]) -> BagAttributes:
    """Attributes as ``BagAttributes.as_json`` gave them, checked; others are passed over.

    Raises:
        BagError: If one is missing or is not what it should be; carries ``place``.
    """
    readers: dict[str, Callable[[Any], Any]] = {
        **dict.fromkeys(("mpp", "slide_mpp"), float),
        **dict.fromkeys(("slide_width_px", "slide_height_px", "tile_px"), int),
        "stride_px": _or_none(int),
        "min_tissue": _or_none(float),
        **dict.fromkeys(("mean", "std"), _or_none(_three)),
        "versions": dict,
    }
    try:
        present = ADDED_LATER | dict(stored)
        values = {
            entry.name: readers.get(entry.name, str)(present[entry.name])
            for entry in fields(BagAttributes)
        }
    except (KeyError, TypeError, ValueError) as error:
        msg = f"its attributes are incomplete or unreadable ({error}). Embed the slide again."
        raise BagError(place, msg) from error
    return BagAttributes(**values)


def _or_none(reader: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else reader(value)


def _three(values: Any) -> tuple[float, ...]:  # noqa: ANN401 - of HDF5 or JSON
    numbers = tuple(float(value) for value in values)
    if len(numbers) != 3:
        msg = f"needs three numbers; got {len(numbers)}"
        raise ValueError(msg)
    return numbers
