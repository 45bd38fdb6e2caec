"""One pass over labelled tiles: each is read once and seen by the encoder and by its floors."""

# Shape suffixes: N tiles, B tiles of a batch, 3 channels, H and W pixels, D embedding width.

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from anlage.encoders.embed_batch import embed_batches
from anlage.encoders.tile_encoder import EncoderConfig, TileEncoder
from anlage.errors import EncoderError
from anlage.evaluation.floors import colour_texture_features
from anlage.evaluation.labelled_tiles import LabelledTiles
from anlage.evaluation.tile_pixels import fit_tile, read_tile_file
from anlage.progress import meter

LOGGER = logging.getLogger(__name__)
COLOUR_TEXTURE = "colour_texture"


@dataclass(frozen=True, kw_only=True, eq=False)
class TileFeatures:
    """What each model says about each tile.

    Attributes:
        by_model: (N, D) float32 of each model, D its own; finite.
        preparation: How many tiles were brought to the encoder's size in which way.
    """

    by_model: Mapping[str, NDArray[np.float32]]
    preparation: Mapping[str, int]


def tile_features(
    tiles: LabelledTiles, encoders: Mapping[str, TileEncoder], *, batch_size: int
) -> TileFeatures:
    """Embed labelled tiles with several encoders of one tile size, and describe their colour.

    All models see the same pixels.

    Args:
        tiles: The tiles.
        encoders: Encoders by name; size and mpp are those of the first.
        batch_size: Tiles of a forward pass.

    Returns:
        Features by name, those of the encoders and ``colour_texture``.

    Raises:
        LabelledDataError: If a tile cannot be decoded.
        EncoderError: If an embedding is not finite.
    """
    config = next(iter(encoders.values())).config
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in (*encoders, COLOUR_TEXTURE)}
    prepared: Counter[str] = Counter()
    with meter("embed tiles", total=len(tiles), unit="tiles") as progress:
        for start in range(0, len(tiles), batch_size):
            rows = range(start, min(start + batch_size, len(tiles)))
            pixels_B3HW = _pixels(tiles, rows, config, prepared)
            for name, encoder in encoders.items():
                batch = torch.from_numpy(pixels_B3HW)
                for embedding_BD in embed_batches(encoder, [batch], batch_size=batch_size):
                    parts[name].append(embedding_BD.numpy().astype(np.float32, copy=False))
                _refuse_not_finite(name, parts[name][-1], tiles, start)
            parts[COLOUR_TEXTURE].append(colour_texture_features(pixels_B3HW))
            progress.advance(len(rows))
    by_model = {name: np.concatenate(part) for name, part in parts.items()}
    return TileFeatures(by_model=by_model, preparation=dict(prepared))


def _pixels(
    tiles: LabelledTiles, rows: range, config: EncoderConfig, prepared: Counter[str]
) -> NDArray[np.uint8]:
    tile_px = config.tile_px
    batch = np.empty((len(rows), 3, tile_px, tile_px), dtype=np.uint8)
    for slot, row in enumerate(rows):
        pixels = read_tile_file(tiles.folder / tiles.file_N[row])
        shrink = None if np.isnan(tiles.mpp_N[row]) else config.mpp / float(tiles.mpp_N[row])
        fitted, how = fit_tile(pixels, tile_px=tile_px, shrink=shrink)
        batch[slot] = fitted.transpose(2, 0, 1)
        prepared[how] += 1
    return batch


def _refuse_not_finite(
    name: str, embedding_BD: NDArray[np.float32], tiles: LabelledTiles, start: int
) -> None:
    bad = np.flatnonzero(~np.isfinite(embedding_BD).all(axis=1))
    if len(bad):
        message = f"the {name} network needs to give finite embeddings; got NaN or an infinity"
        raise EncoderError(tiles.file_N[start + bad[0]], f"{message}. Check its weights; try fp32.")
