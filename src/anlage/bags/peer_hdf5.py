"""HDF5 files of TRIDENT, CLAM and STAMP: read, and STAMP's written.

TRIDENT   ``features_ENCODER/ID.h5`` (features, coords with attributes), ``patches/ID_patches.h5``
CLAM      ``h5_files/ID.h5`` (features, coords), ``patches/ID.h5`` (coords with attributes)
STAMP     ``feats``, ``coords`` in micrometres, attributes of the file

Names as in mahmoodlab/TRIDENT (trident/IO.py, trident/wsi_objects/WSI.py), mahmoodlab/CLAM
(wsi_core/WholeSlideImage.py, utils/file_utils.py) and KatherLab/STAMP
(src/stamp/preprocessing/__init__.py, src/stamp/modeling/data.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from anlage.bags.bag import Bag
from anlage.bags.foreign import OURS, FoundTiles, ours_as_text, ours_from_text, rows_or_refuse
from anlage.bags.hdf5_store import write_hdf5_whole
from anlage.errors import BagError

STAMP_LAYOUT = "2.1.0"  # the version since which STAMP's files are as they are


@contextmanager
def opened_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open any HDF5 file for reading.

    Raises:
        BagError: If it is missing or damaged; also where reading goes wrong inside the block.
    """
    if not path.is_file():
        raise BagError(path, "no such file. Check the path.")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError, TypeError) as error:
        reason = str(error).strip("'\"")
        raise BagError(path, f"not a whole HDF5 file ({reason}). Make it again.") from error


def is_stamp(path: Path) -> bool:
    """Whether an HDF5 file is one of STAMP's."""
    with opened_hdf5(path) as file:
        return "feats" in file


def read_features_hdf5(path: Path, slide_id: str, *, places: Path | None = None) -> FoundTiles:
    """TRIDENT's or CLAM's features of a slide.

    Args:
        path: File with ``features`` and perhaps ``coords``.
        slide_id: The slide.
        places: File with its ``coords`` and their attributes, if there is one; its corners have to
            be those of ``path`` where both have some.

    Raises:
        BagError: If one is damaged or no such file, or the two disagree.
    """
    with opened_hdf5(path) as file:
        if "features" not in file:
            names = ", ".join(file) or "nothing"
            raise BagError(path, f"needs a dataset 'features'; it holds {names}. It is no bag.")
        features = _two_dimensional(file["features"][()])
        coords = file["coords"][()] if "coords" in file else None
        encoder = file["features"].attrs.get("encoder")
        attributes = dict(file["coords"].attrs) if coords is not None else {}
        ours = ours_from_text(path, file.attrs.get(OURS))
    if places is not None:
        attributes, coords = _placed(path, places, attributes, coords)
    rows_or_refuse(path, features, coords, what="TRIDENT's or CLAM's features")
    return FoundTiles(
        slide_id=slide_id,
        features=features,
        coords=None if coords is None else coords.astype(np.int64),
        encoder_name=None if encoder in {None, "None"} else str(encoder),
        attributes=ours,
        **grid_of(path, attributes),
    )


def _two_dimensional(features: NDArray[Any]) -> NDArray[Any]:
    """TRIDENT writes features of a slide without tiles as (0,), of an encoder of unknown width."""
    return features.reshape(0, 0) if features.shape == (0,) else features


def _placed(
    path: Path, places: Path, attributes: dict[str, Any], coords: NDArray[Any] | None
) -> tuple[dict[str, Any], NDArray[Any]]:
    theirs, corners = read_places(places)
    if coords is not None and not np.array_equal(corners, coords):
        msg = f"has other coordinates than {places}. One of them was made anew; make both again."
        raise BagError(path, msg)
    return theirs | attributes, corners


def read_places(path: Path) -> tuple[dict[str, Any], NDArray[Any]]:
    """Attributes and corners, (L, 2) level-0 pixels, of a file of coordinates.

    Raises:
        BagError: If it is damaged or has no ``coords``.
    """
    with opened_hdf5(path) as file:
        if "coords" not in file:
            names = ", ".join(file) or "nothing"
            raise BagError(path, f"needs a dataset 'coords'; it holds {names}.")
        return dict(file["coords"].attrs), file["coords"][()]


def grid_of(path: Path, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """What TRIDENT's or CLAM's attributes of ``coords`` say, as fields of FoundTiles.

    Raises:
        BagError: If a value is no number.
    """
    found: dict[str, Any] = {}
    try:
        if "patch_size" in attributes:
            found["tile_px"] = int(attributes["patch_size"])
        if "patch_size_level0" in attributes:  # TRIDENT
            found["tile_level0_px"] = _trident_edge(attributes)
            found["slide_size"] = (
                int(attributes["level0_width"]),
                int(attributes["level0_height"]),
            )
            if "overlap" in attributes:
                found["stride_px"] = found["tile_px"] - int(attributes["overlap"])
        elif "downsample" in attributes:  # CLAM: both axes of the level its tiles were read at
            downsample = float(np.ravel(attributes["downsample"])[0])
            found["tile_level0_px"] = found["tile_px"] * downsample
    except (KeyError, TypeError, ValueError) as error:
        msg = f"its attributes of coords are incomplete or unreadable ({error}). Make it again."
        raise BagError(path, msg) from error
    return found


def _trident_edge(attributes: Mapping[str, Any]) -> float:
    """TRIDENT's tile edge, level-0 pixels: ``patch_size_level0`` is rounded down, this is not."""
    ratio = float(attributes["level0_magnification"]) / float(attributes["target_magnification"])
    edge = int(attributes["patch_size"]) * ratio
    said = int(attributes["patch_size_level0"])
    return edge if abs(edge - said) <= 1 else said


def read_stamp(path: Path, slide_id: str) -> FoundTiles:
    """STAMP's features of a slide.

    Raises:
        BagError: If it is damaged, of a slide as a whole, or from before STAMP 2.
    """
    with opened_hdf5(path) as file:
        if file.attrs.get("feat_type", "tile") != "tile":
            msg = f"needs tile embeddings; got {file.attrs['feat_type']} embeddings. "
            raise BagError(path, f"{msg}Name the folder that `stamp preprocess` wrote.")
        features, coords = file["feats"][()], file["coords"][()]
        attributes = dict(file.attrs)
    rows_or_refuse(path, features, coords, what="STAMP's features")
    edge_um = attributes.get("tile_size_um")
    if edge_um is None and attributes.get("unit") == "um":
        edge_um = attributes.get("tile_size")
    if edge_um is None:
        msg = "does not say its tiles' size in micrometres: it is from before STAMP 2. "
        raise BagError(path, f"{msg}Extract it again.")
    tile_px, extractor = attributes.get("tile_size_px"), attributes.get("extractor")
    ours = ours_from_text(path, attributes.get(OURS))
    return FoundTiles(
        slide_id=slide_id,
        features=features,
        coords=None if ours is None else _level0(coords, ours.slide_mpp),
        coords_um=coords,
        tile_px=None if tile_px is None else int(tile_px),
        tile_um=float(edge_um),
        stride_px=None if tile_px is None else int(tile_px),  # STAMP's tiles never overlap
        encoder_name=None if extractor is None else str(extractor),
        attributes=ours,
    )


def _level0(coords_um: NDArray[Any], slide_mpp: float) -> NDArray[np.int64]:
    return np.round(coords_um.astype(np.float64) / slide_mpp).astype(np.int64)


def write_stamp(path: Path, bag: Bag) -> None:
    """Write a bag as STAMP does, corners in micrometres; whole or not at all.

    Raises:
        OSError: If the disk is full or refuses.
    """
    made = bag.attributes
    coords_um = bag.coords * made.slide_mpp

    def fill(file: h5py.File) -> None:
        file["coords"] = coords_um.astype(np.float32)
        file["feats"] = bag.features
        file.attrs["stamp_version"] = STAMP_LAYOUT
        file.attrs["extractor"] = made.encoder_name or made.encoder_fingerprint
        file.attrs["unit"] = "um"
        file.attrs["tile_size_um"] = made.tile_px * made.mpp
        file.attrs["tile_size_px"] = made.tile_px
        file.attrs["feat_type"] = "tile"
        file.attrs[OURS] = ours_as_text(bag)

    write_hdf5_whole(path, fill)


def write_clam_hdf5(path: Path, bag: Bag) -> None:
    """Write a bag as CLAM's ``h5_files``, features in float32; whole or not at all.

    Raises:
        OSError: If the disk is full or refuses.
    """

    def fill(file: h5py.File) -> None:
        file["features"] = bag.features.astype(np.float32)
        file["coords"] = bag.coords
        file.attrs[OURS] = ours_as_text(bag)

    write_hdf5_whole(path, fill)
