"""The bag file: one HDF5 a slide, in the layout that TRIDENT and CLAM read.

Shape suffixes: L tiles of the slide, D embedding width.

    features   (L, D) float16, contiguous, not compressed
    coords     (L, 2) int64, upper-left corners (x, y) in level-0 pixels, with TRIDENT's attributes

The file's own attributes (``format = "bag/1"``) say what made it; see BagAttributes.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from anlage.errors import BagError
from anlage.files import replace_whole
from anlage.geometry import level0_px

FORMAT = "bag/1"
FLOAT16_MAX = float(np.finfo(np.float16).max)
NOT_IDENTITY = ("versions", "created_by", "precision", "icc_profile")
SINCE_COLOUR = {"colour": "stored", "icc_profile": ""}  # true of bags from before they said it


@dataclass(frozen=True, kw_only=True, slots=True)
class BagAttributes:
    """What a bag was made from, and how.

    Attributes:
        encoder_fingerprint: SHA-256 of the tile encoder's weights and transform.
        slide_fingerprint: The slide's fingerprint in its catalogue.
        mpp: Resolution of the tiles, micrometres per pixel.
        slide_mpp: Resolution of level 0, micrometres per pixel.
        slide_width_px: Width of level 0, pixels.
        slide_height_px: Height of level 0, pixels.
        tile_px: Tile edge, pixels at ``mpp``.
        stride_px: Step between corners, pixels at ``mpp``.
        min_tissue: Smallest tissue fraction of a kept tile.
        mean: Mean that the transform took off each channel of pixels in [0, 1].
        std: Standard deviation by which it divided.
        colour: Whether tiles were embedded as ``stored`` or in ``srgb``, by the slide's profile.
        icc_profile: With ``srgb``, the SHA-256 of the profile; "none" if the slide has none, so
            that its pixels stayed as stored. Else empty.
        precision: Arithmetic of the forward pass, ``fp32`` or ``bf16``.
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
    stride_px: int
    min_tissue: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    colour: str = "stored"
    icc_profile: str = ""
    precision: str = "fp32"
    versions: Mapping[str, str] = field(default_factory=dict)
    created_by: str = "anlage"

    @property
    def tile_level0_px(self) -> float:
        """Tile edge in level-0 pixels, not rounded."""
        return level0_px(self.tile_px, mpp=self.mpp, slide_mpp=self.slide_mpp)

    def differences(self, other: BagAttributes) -> list[str]:
        """Names of the attributes in which two bags are not the same thing.

        Versions and precision say how a bag was made; they do not make it another bag.
        """
        names = [entry.name for entry in fields(self) if entry.name not in NOT_IDENTITY]
        return [name for name in names if getattr(self, name) != getattr(other, name)]


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


def write_bag(path: str | Path, bag: Bag) -> None:
    """Write a bag whole or not at all; an existing one is replaced.

    The file is built in memory and written in one piece, so that a full disk is a plain error.

    Args:
        path: File to write, by custom ``<slide_id>.h5``.
        bag: Features of any floating dtype (stored as float16), and their corners.

    Raises:
        BagError: If a feature is not finite or does not fit float16.
        ValueError: If features and coords are not (L, D) floats and (L, 2) integers.
        OSError: If the disk is full or refuses; carries ``path``.
    """
    features, coords = _checked(path, bag)
    image = _hdf5_image(bag, features, coords)
    try:
        with replace_whole(path) as beside:
            beside.write_bytes(image)
    except OSError as error:
        raise OSError(error.errno, f"write_bag: {error.strerror}", str(path)) from error


def _checked(path: str | Path, bag: Bag) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
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
    _refuse_unstorable(path, features)
    return features.astype(np.float16), coords.astype(np.int64)


def _refuse_unstorable(path: str | Path, features: NDArray[Any]) -> None:
    """Refuse what float16 would store as an infinity; up to halfway beyond, it rounds down."""
    finite = np.isfinite(features)
    if finite.all() and float(np.abs(features).max(initial=0)) < FLOAT16_MAX + 16:
        return
    if not finite.all():
        tile = int(np.argmin(finite.all(axis=1)))
        rule, remedy = "finite features", "Check the encoder's weights on that tile"
    else:
        tile = int(np.abs(features).max(axis=1).argmax())
        rule = f"features within float16's {FLOAT16_MAX:g}"
        remedy = "Use an encoder that ends in a normalisation, or scale its output"
    value = features[tile][np.argmax(~finite[tile] | (np.abs(features[tile]) > FLOAT16_MAX))]
    raise BagError(path, f"needs {rule}; got {value} in tile {tile}. {remedy}.")


def _hdf5_image(bag: Bag, features: NDArray[np.float16], coords: NDArray[np.int64]) -> memoryview:
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        feature_data = file.create_dataset("features", data=features)
        feature_data.attrs["name"] = bag.slide_id
        coord_data = file.create_dataset("coords", data=coords)
        coord_data.attrs.update(_trident_attributes(bag))
        for name, value in _stored(bag.attributes).items():
            file.attrs[name] = value
        file.attrs["format"] = FORMAT
        file.attrs["slide_id"] = bag.slide_id
        file.attrs["tile_level0_px"] = bag.attributes.tile_level0_px
        file.attrs["content_sha256"] = content_sha256(features, coords)
    return memory.getbuffer()


def _trident_attributes(bag: Bag) -> dict[str, str | int]:
    """The attributes TRIDENT puts on ``coords``; magnification is 10 / mpp, rounded."""
    made = bag.attributes
    return {
        "name": bag.slide_id,
        "description": "(x, y) upper-left corner of each tile, level-0 pixels",
        "patch_size": made.tile_px,
        "patch_size_level0": round(made.tile_level0_px),
        "overlap": max(made.tile_px - made.stride_px, 0),
        "target_magnification": max(round(10 / made.mpp), 1),
        "level0_magnification": max(round(10 / made.slide_mpp), 1),
        "level0_width": made.slide_width_px,
        "level0_height": made.slide_height_px,
    }


def _stored(attributes: BagAttributes) -> dict[str, Any]:
    stored = asdict(attributes)
    return stored | {"versions": json.dumps(stored["versions"], sort_keys=True)}


def content_sha256(features: NDArray[np.float16], coords: NDArray[np.int64]) -> str:
    """SHA-256 over shapes and bytes of a bag's two arrays: the bag's own fingerprint."""
    digest = hashlib.sha256(repr((features.shape, coords.shape)).encode())
    digest.update(np.ascontiguousarray(features).data)
    digest.update(np.ascontiguousarray(coords).data)
    return digest.hexdigest()


def read_bag(path: str | Path, *, verify: bool = True) -> Bag:
    """Read a bag, refusing one that is damaged or is something else.

    Args:
        path: A file that ``write_bag`` wrote.
        verify: Hash the content and compare (0.04 s for 20,000 tiles of width 1,536). Without it
            a changed bit inside the arrays goes unseen; shapes and attributes are always checked.

    Returns:
        The bag: features (L, D) float16, coords (L, 2) int64, level-0 pixels.

    Raises:
        BagError: If the file is missing, cut short, of another format, or its content changed.
    """
    with _opened(path) as file:
        header = _header(path, file)
        features = file["features"][()]
    if verify and content_sha256(features, header.coords) != header.content_sha256:
        rule = "its content does not match its checksum: the file was changed or is damaged"
        raise BagError(path, f"{rule}. Delete it and embed the slide again.")
    return Bag(header.slide_id, features, header.coords, header.attributes)


def read_bag_header(path: str | Path) -> BagHeader:
    """Read all of a bag but its features; the same checks as ``read_bag`` without its checksum.

    Raises:
        BagError: If the file is missing, cut short, or of another format.
    """
    with _opened(path) as file:
        return _header(path, file)


@contextmanager
def _opened(path: str | Path) -> Iterator[h5py.File]:
    if not Path(path).is_file():
        raise BagError(path, "no such bag. Embed the slide first.")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError) as error:
        reason = str(error).strip("'\"")
        msg = f"not a whole HDF5 file ({reason}). Delete it and embed the slide again."
        raise BagError(path, msg) from error


def _header(path: str | Path, file: h5py.File) -> BagHeader:
    found = file.attrs.get("format")
    if found != FORMAT:
        msg = f"needs format {FORMAT!r}; got {found!r}. Embed the slide again, or convert the file."
        raise BagError(path, msg)
    coords, width = _checked_datasets(path, file)
    slide_id, checksum = file.attrs.get("slide_id"), file.attrs.get("content_sha256")
    if not isinstance(slide_id, str) or not isinstance(checksum, str):
        raise BagError(path, "needs attributes slide_id and content_sha256. Embed the slide again.")
    return BagHeader(slide_id, width, coords, _read_attributes(path, file.attrs), checksum)


def _checked_datasets(path: str | Path, file: h5py.File) -> tuple[NDArray[np.int64], int]:
    wanted = {"features": np.float16, "coords": np.int64}
    for name, dtype in wanted.items():
        data = file.get(name)
        if not isinstance(data, h5py.Dataset) or data.ndim != 2 or data.dtype != dtype:
            got = f"{data.shape} {data.dtype}" if isinstance(data, h5py.Dataset) else "nothing"
            msg = f"needs a 2-D dataset {name!r} of {np.dtype(dtype)}; got {got}. Embed it again."
            raise BagError(path, msg)
    features, coords = file["features"], file["coords"]
    if coords.shape != (len(features), 2):
        rule = f"needs coords ({len(features)}, 2), one row a tile"
        msg = f"{rule}; got {coords.shape}. Embed the slide again."
        raise BagError(path, msg)
    return coords[()], int(features.shape[1])


def _read_attributes(path: str | Path, stored: h5py.AttributeManager) -> BagAttributes:
    readers: dict[str, Callable[[Any], Any]] = {
        **dict.fromkeys(("mpp", "slide_mpp", "min_tissue"), float),
        **dict.fromkeys(("slide_width_px", "slide_height_px", "tile_px", "stride_px"), int),
        **dict.fromkeys(("mean", "std"), lambda values: tuple(float(value) for value in values)),
        "versions": json.loads,
    }
    try:
        present = SINCE_COLOUR | dict(stored)
        values = {
            entry.name: readers.get(entry.name, str)(present[entry.name])
            for entry in fields(BagAttributes)
        }
    except (KeyError, TypeError, ValueError) as error:
        msg = f"its attributes are incomplete or unreadable ({error}). Embed the slide again."
        raise BagError(path, msg) from error
    return BagAttributes(**values)
