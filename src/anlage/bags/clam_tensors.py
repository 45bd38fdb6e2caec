"""CLAM's ``pt_files/ID.pt``: a pickled tensor of features, without coordinates."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anlage.bags.bag import Bag
from anlage.bags.foreign import FoundTiles, rows_or_refuse
from anlage.bags.peer_hdf5 import grid_of, read_places
from anlage.errors import BagError
from anlage.files import replace_whole


def read_tensor(path: Path, slide_id: str, *, places: Path | None = None) -> FoundTiles:
    """The features of a slide; no code in the file is run.

    Args:
        path: A file of ``torch.save``.
        slide_id: The slide.
        places: HDF5 file with the ``coords`` of its tiles, in their order, if there is one.

    Raises:
        BagError: If the file is damaged, holds anything but one (L, D) tensor of floats, or
            another number of tiles than ``places``.
    """
    features = _loaded(path)
    attributes: dict[str, Any] = {}
    coords: NDArray[Any] | None = None
    if places is not None:
        attributes, coords = read_places(places)
        if len(coords) != len(features):
            msg = f"holds {len(features)} tiles, {places} {len(coords)}. They are not of one run."
            raise BagError(path, msg)
    rows_or_refuse(path, features, coords, what="CLAM's features")
    return FoundTiles(
        slide_id=slide_id,
        features=features,
        coords=None if coords is None else coords.astype(np.int64),
        **grid_of(path, attributes),
    )


def _loaded(path: Path) -> NDArray[Any]:
    import torch

    if not path.is_file():
        raise BagError(path, "no such file. Check the path.")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        msg = "holds more than a tensor: code, which is not run. Save the tensor alone "
        raise BagError(path, f"{msg}(torch.save(features, ...)) where you trust the file.") from (
            error
        )
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise BagError(path, f"not a whole file of torch.save ({reason}). Make it again.") from (
            error
        )
    if isinstance(found, np.ndarray):
        return found
    if not isinstance(found, torch.Tensor):
        msg = f"needs one tensor of features; got a {type(found).__name__}. Save the tensor alone."
        raise BagError(path, msg)
    return found.float().numpy() if found.dtype == torch.bfloat16 else found.numpy()


def write_tensor(path: Path, bag: Bag) -> None:
    """Write the features of a bag as CLAM does, in float32; whole or not at all.

    Raises:
        OSError: If the disk is full or refuses; carries ``path``.
    """
    import torch

    image = io.BytesIO()
    torch.save(torch.from_numpy(bag.features.astype(np.float32)), image)
    try:
        with replace_whole(path) as beside:
            beside.write_bytes(image.getbuffer())
    except OSError as error:
        raise OSError(error.errno, f"write_bag: {error.strerror}", str(path)) from error
