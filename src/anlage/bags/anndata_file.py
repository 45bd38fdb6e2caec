"""A bag as AnnData (``ID.h5ad``), as ``features_anndata`` of wsidata lays it out.

    X                 (L, D) float32
    obs               tile_id, x, y, library_id
    obsm["spatial"]   (L, 2) upper-left corners, level-0 pixels
    uns               tile_spec, slide_properties (a part of them), anlage

Names as in rendeirolab/wsidata (wsidata/accessors/fetch.py, wsidata/_model/tile.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from anlage.bags.bag import Bag
from anlage.bags.foreign import OURS, FoundTiles, ours_as_text, ours_from_text, rows_or_refuse
from anlage.errors import BagError
from anlage.files import replace_whole

NEEDS = "needs the package {0}. Install it: pip install {0}."


def tile_spec(bag: Bag) -> dict[str, Any] | None:
    """How the tiles of a bag are cut, in wsidata's words; None if their step is not known."""
    made = bag.attributes
    if made.stride_px is None:
        return None
    downsample = made.mpp / made.slide_mpp
    return {
        "height": made.tile_px,
        "width": made.tile_px,
        "stride_height": made.stride_px,
        "stride_width": made.stride_px,
        "mpp": made.mpp,
        "ops_level": 0,
        "ops_downsample": downsample,
        "base_level": 0,
        "base_downsample": downsample,
    }


def as_anndata(bag: Bag) -> Any:  # noqa: ANN401 - AnnData, of a package that may be missing
    """A bag as an AnnData object.

    Raises:
        BagError: If the package anndata is not installed.
    """
    anndata, pd = packages(bag.slide_id)
    n_tiles, width = bag.features.shape

    def names(words: list[str]) -> Any:  # noqa: ANN401 - of objects, as anndata writes no others
        return pd.Index(words, dtype=object)

    obs = pd.DataFrame(
        {"tile_id": np.arange(n_tiles), "x": bag.coords[:, 0], "y": bag.coords[:, 1]},
        index=names([str(k) for k in range(n_tiles)]),
    )
    obs["library_id"] = pd.Categorical.from_codes([0] * n_tiles, names([bag.slide_id]))
    made = bag.attributes
    properties = {"shape": [made.slide_height_px, made.slide_width_px], "mpp": made.slide_mpp}
    spec = tile_spec(bag)
    return anndata.AnnData(
        X=bag.features.astype(np.float32),
        obs=obs,
        var=pd.DataFrame(index=names([str(k) for k in range(width)])),
        obsm={"spatial": bag.coords},
        uns={"slide_properties": properties, OURS: ours_as_text(bag)}
        | ({} if spec is None else {"tile_spec": spec}),
    )


def packages(place: str | Path) -> tuple[Any, Any]:
    """The modules anndata and pandas.

    Raises:
        BagError: If they are not installed.
    """
    try:
        import anndata
        import pandas as pd
    except ModuleNotFoundError as error:
        raise BagError(place, NEEDS.format("anndata")) from error
    return anndata, pd


def write_anndata(path: Path, bag: Bag) -> None:
    """Write a bag as ``.h5ad``; whole or not at all.

    Raises:
        BagError: If the package anndata is not installed.
        OSError: If the disk is full or refuses; carries ``path``.
    """
    data = as_anndata(bag)
    try:
        with replace_whole(path) as beside:
            data.write_h5ad(beside)
    except (OSError, RuntimeError) as error:  # h5py tells of a full disk by either
        number = error.errno if isinstance(error, OSError) else None
        raise OSError(number, f"write_bag: {error}", str(path)) from error


def read_anndata(path: Path, slide_id: str) -> FoundTiles:
    """A slide's tiles from ``.h5ad``, ours or that of LazySlide and wsidata.

    Raises:
        BagError: If the file is damaged, has no ``obsm["spatial"]``, or anndata is not installed.
    """
    anndata, _ = packages(path)
    try:
        data = anndata.read_h5ad(path)
    except Exception as error:  # anndata wraps whatever h5py raises in errors of its own
        raise BagError(path, f"is no whole .h5ad file ({error}). Make it again.") from error
    return tiles_of_anndata(path, slide_id, data)


def tiles_of_anndata(
    path: Path,
    slide_id: str,
    data: Any,  # noqa: ANN401 - AnnData
    *,
    spec: Mapping[str, Any] | None = None,
) -> FoundTiles:
    """A slide's tiles from an AnnData object.

    Args:
        path: Where it is from, for errors.
        slide_id: The slide.
        data: AnnData with ``obsm["spatial"]``.
        spec: wsidata's TileSpec as a mapping, where ``uns`` does not hold it.

    Raises:
        BagError: If it is no bag.
    """
    features = data.X if isinstance(data.X, np.ndarray) else np.asarray(data.X.todense())
    if "spatial" not in data.obsm:
        raise BagError(path, 'has no obsm["spatial"], so no coordinates, and none are made up.')
    coords = np.asarray(data.obsm["spatial"])
    rows_or_refuse(path, features, coords, what="AnnData of tiles")
    spec = data.uns.get("tile_spec", {}) if spec is None else spec
    size = data.uns.get("slide_properties", {}).get("shape")
    return FoundTiles(
        slide_id=slide_id,
        features=features,
        coords=np.round(coords).astype(np.int64),
        slide_size=None if size is None else (int(size[1]), int(size[0])),
        attributes=ours_from_text(path, data.uns.get(OURS)),
        **_grid(path, spec),
    )


def _grid(path: Path, spec: Mapping[str, Any]) -> dict[str, Any]:
    if not spec:
        return {}
    try:
        width, stride = int(spec["width"]), int(spec["stride_width"])
        if (width, stride) != (int(spec["height"]), int(spec["stride_height"])):
            raise BagError(path, f"needs square tiles on a square grid; got {dict(spec)}.")
        edge = width * float(spec["base_downsample"])
    except (KeyError, TypeError, ValueError) as error:
        raise BagError(path, f"its tile_spec is incomplete ({error}). Make it again.") from error
    return {"tile_px": width, "stride_px": stride, "tile_level0_px": edge}
