"""Folders as TRIDENT and CLAM leave them, of real slides: read with OpenSlide and Pillow alone.

The layout is that of mahmoodlab/TRIDENT (trident/Processor.py, trident/IO.py) and mahmoodlab/CLAM
(wsi_core/WholeSlideImage.py, extract_features_fp.py); none of their code is here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import openslide
import torch
from numpy.typing import NDArray
from PIL import Image

from anlage.encoders.tile_encoder import TileEncoder


def slide_tiles(
    path: Path, corners: NDArray[np.int64], *, level0_px: int, tile_px: int
) -> NDArray[np.uint8]:
    """Tiles as these tools read them: level 0, then Pillow's resize; (K, S, S, 3)."""
    tiles = []
    with openslide.open_slide(path) as slide:
        for x, y in corners.tolist():
            region = slide.read_region((x, y), 0, (level0_px, level0_px)).convert("RGB")
            tiles.append(np.asarray(region.resize((tile_px, tile_px), Image.Resampling.BILINEAR)))
    return np.stack(tiles) if tiles else np.empty((0, tile_px, tile_px, 3), np.uint8)


def embed(encoder: TileEncoder, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Embeddings of tiles that are resized to the encoder's size, as their transforms do."""
    edge = encoder.config.tile_px
    resized = [
        np.asarray(Image.fromarray(tile).resize((edge, edge), Image.Resampling.BILINEAR))
        for tile in tiles
    ]
    if not resized:
        return np.empty((0, encoder.width), np.float32)
    pixels = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)
    return encoder.embed(pixels.contiguous()).numpy()


def grid(path: Path, *, level0_px: int) -> NDArray[np.int64]:
    """Corners of all whole tiles of a slide."""
    with openslide.open_slide(path) as slide:
        width, height = slide.dimensions
    xs, ys = (range(0, edge - level0_px + 1, level0_px) for edge in (width, height))
    return np.array([(x, y) for y in ys for x in xs], np.int64).reshape(-1, 2)


def write_trident(
    job: Path,
    slides: Sequence[Path],
    encoder: TileEncoder,
    *,
    name: str = "anlage-tiny",
    magnifications: tuple[int, int] = (10, 10),
    tile_px: int = 256,
) -> Path:
    """A job folder: coordinates, contours and features of each slide; returns the grid's folder."""
    level0_mag, target_mag = magnifications
    level0_px = tile_px * level0_mag // target_mag
    folder = job / f"{target_mag}x_{tile_px}px_0px_overlap"
    for part in (folder / "patches", folder / f"features_{name}", job / "contours_geojson"):
        part.mkdir(parents=True, exist_ok=True)
    for path in slides:
        corners = grid(path, level0_px=level0_px)
        with openslide.open_slide(path) as slide:
            width, height = slide.dimensions
        attributes = {
            "patch_size": tile_px,
            "patch_size_level0": level0_px,
            "level0_magnification": level0_mag,
            "target_magnification": target_mag,
            "overlap": 0,
            "name": path.stem,
            "savetodir": str(folder),
            "level0_width": width,
            "level0_height": height,
        }
        tiles = slide_tiles(path, corners, level0_px=level0_px, tile_px=tile_px)
        features = embed(encoder, tiles)
        with h5py.File(folder / "patches" / f"{path.stem}_patches.h5", "w") as file:
            file.create_dataset("coords", data=corners, chunks=(1, 2), maxshape=(None, 2))
            file["coords"].attrs.update(attributes)
        with h5py.File(folder / f"features_{name}" / f"{path.stem}.h5", "w") as file:
            file.create_dataset("features", data=features, chunks=(1, features.shape[1]))
            file["features"].attrs.update({"name": path.stem, "encoder": name})
            file.create_dataset("coords", data=corners)
            file["coords"].attrs.update(attributes)
        write_contours(job / "contours_geojson" / f"{path.stem}.geojson", width, height)
    return folder


def write_contours(path: Path, width: int, height: int) -> None:
    """One polygon: the slide's left two thirds."""
    ring = [[0, 0], [2 * width // 3, 0], [2 * width // 3, height], [0, height], [0, 0]]
    feature = {
        "type": "Feature",
        "properties": {"tissue_id": 0},
        "geometry": {"type": "Polygon", "coordinates": [ring]},
    }
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))


def write_clam(
    folder: Path, slides: Sequence[Path], encoder: TileEncoder, *, tile_px: int = 256
) -> Path:
    """CLAM's patches and features in one folder, tiles at level 0; returns that folder."""
    for part in ("patches", "h5_files", "pt_files"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for path in slides:
        corners = grid(path, level0_px=tile_px)
        features = embed(encoder, slide_tiles(path, corners, level0_px=tile_px, tile_px=tile_px))
        with h5py.File(folder / "patches" / f"{path.stem}.h5", "w") as file:
            file["coords"] = corners.astype(np.int32)
            file["coords"].attrs.update(
                {"patch_size": tile_px, "patch_level": 0, "downsample": (1.0, 1.0)}
            )
        with h5py.File(folder / "h5_files" / f"{path.stem}.h5", "w") as file:
            file["features"], file["coords"] = features, corners
        torch.save(torch.from_numpy(features), folder / "pt_files" / f"{path.stem}.pt")
    return folder
