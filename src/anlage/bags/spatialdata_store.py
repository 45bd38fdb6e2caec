"""A bag as SpatialData (``ID.zarr``), as wsidata and LazySlide keep a slide's tiles beside it.

    shapes/tiles                    squares in level-0 pixels, with tile_id, x, y, tissue_id
    tables/ENCODER_tiles            AnnData: the features, annotating these squares
    attrs                           tile_spec of "tiles", anlage

Names as in rendeirolab/wsidata (wsidata/io/_elems.py, wsidata/_model/core.py).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from anlage.bags.anndata_file import NEEDS, as_anndata, packages, tile_spec, tiles_of_anndata
from anlage.bags.bag import Bag
from anlage.bags.foreign import OURS, FoundTiles, ours_as_text, ours_from_text
from anlage.errors import BagError
from anlage.folder_replacement import replace_folder

TILES = "tiles"


def write_spatialdata(path: Path, bag: Bag) -> None:
    """Write a bag as SpatialData; whole or not at all.

    Raises:
        BagError: If the package spatialdata is not installed, or the step of the grid is not known,
            which wsidata needs.
        OSError: If the disk is full or refuses; carries ``path``.
    """
    spec = tile_spec(bag)
    if spec is None:
        msg = "does not know the step between its tiles, which SpatialData of LazySlide states. "
        raise BagError(path, f"{msg}Take --to anndata.")
    if not len(bag.features):
        raise BagError(path, "has no tiles, and SpatialData keeps no empty shapes. Leave it out.")
    data = _spatialdata(path, bag, spec)
    try:
        with replace_folder(path, clear_older_than_s=None) as beside:
            beside.rmdir()  # it writes only where nothing is
            data.write(beside)
    except OSError as error:
        raise OSError(error.errno, f"write_bag: {error.strerror}", str(path)) from error


def _spatialdata(path: Path, bag: Bag, spec: dict[str, Any]) -> Any:  # noqa: ANN401
    spatialdata = _package(path)
    import geopandas
    import shapely

    edge = bag.attributes.tile_level0_px
    x, y = bag.coords.T.astype(np.float64)
    squares = geopandas.GeoDataFrame(
        {
            "tile_id": np.arange(len(bag.coords)),
            "x": bag.coords[:, 0],
            "y": bag.coords[:, 1],
            "tissue_id": np.zeros(len(bag.coords), np.int64),
            "geometry": shapely.box(x, y, x + edge, y + edge),
        }
    )
    table = as_anndata(bag)
    _, pd = packages(path)
    table.obs["library_id"] = pd.Categorical.from_codes(
        [0] * len(table.obs), pd.Index([TILES], dtype=object)
    )
    model = spatialdata.models.TableModel.parse(
        table, region=TILES, region_key="library_id", instance_key="tile_id"
    )
    return spatialdata.SpatialData(
        shapes={TILES: spatialdata.models.ShapesModel.parse(squares)},
        tables={f"{_key(bag)}_{TILES}": model},
        attrs={"tile_spec": {TILES: spec}, OURS: ours_as_text(bag)},
    )


def _key(bag: Bag) -> str:
    """A name of the table: letters, digits and marks that SpatialData allows."""
    name = bag.attributes.encoder_name or bag.attributes.encoder_fingerprint[:12]
    return re.sub(r"[^A-Za-z0-9_.-]", "-", name)


def _package(place: Path) -> Any:  # noqa: ANN401 - a module that may be missing
    try:
        import spatialdata
    except ModuleNotFoundError as error:
        raise BagError(place, NEEDS.format("spatialdata")) from error
    return spatialdata


def read_spatialdata(path: Path, slide_id: str, *, table: str | None = None) -> FoundTiles:
    """A slide's tiles from SpatialData, ours or that of LazySlide.

    Args:
        path: The Zarr folder.
        slide_id: The slide.
        table: Which table of tile features, such as ``uni_tiles``; None where there is one.

    Raises:
        BagError: If it is no SpatialData with tiles and features, or has several such tables.
    """
    try:
        data = _package(path).read_zarr(path)
    except BagError:
        raise
    except Exception as error:  # spatialdata passes on whatever Zarr and Parquet raise
        raise BagError(path, f"is no SpatialData that can be read ({error}).") from error
    names = [name for name in data.tables if name.endswith(f"_{TILES}")]
    if table is not None and table not in names:
        raise BagError(path, f"has no table {table!r} of tiles; it has {names}. Name one of them.")
    if TILES not in data.shapes or (len(names) != 1 and table is None):
        msg = f"needs shapes 'tiles' and one table of their features; got {names}. "
        raise BagError(path, f"{msg}Name one with --table.")
    chosen = table or names[0]
    features = data.tables[chosen]
    corners = data.shapes[TILES].bounds[["minx", "miny"]].to_numpy()
    features.obsm["spatial"] = corners
    spec = data.attrs.get("tile_spec", {}).get(TILES, {})
    found = tiles_of_anndata(path, slide_id, features, spec=spec)
    return FoundTiles(
        slide_id=slide_id,
        features=found.features,
        coords=found.coords,
        tile_px=found.tile_px,
        tile_level0_px=found.tile_level0_px,
        stride_px=found.stride_px,
        encoder_name=chosen.removesuffix(f"_{TILES}"),
        attributes=ours_from_text(path, data.attrs.get(OURS)),
    )
