"""What the patch tokens tell apart: their three strongest directions as colours over a slide.

Shape suffixes: N patch tokens of a tile, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from anlage.encoders.tile_encoder import TileEncoder
from anlage.errors import AnlageError
from anlage.explain.pca import fit_patch_pca
from anlage.geometry import level0_px
from anlage.report.contents import Contents
from anlage.report.pictures import jpeg_uri, png_uri
from anlage.report.provenance_chain import trained_on
from anlage.slides.catalogue import Catalogue, SlideRow
from anlage.slides.levels import read_tile
from anlage.tiles.grid import tile_grid
from anlage.tiles.spec import TileSpec

LOGGER = logging.getLogger(__name__)
BATCH = 32
MULTIPLICATIONS = 1.2e11  # of one slide's tokens: seconds on a CPU core
MOST_SORTED = 10_000  # slides among which one is chosen
FEWEST_TILES, MOST_TILES = 16, 900
PICTURE_PX = 640
MIN_TISSUE = 0.1
WHITE = 255


@dataclass(frozen=True, kw_only=True)
class PatchMap:
    """One slide, as it is and as the encoder sees it.

    Attributes:
        slide_id: Its name.
        role: ``held out`` or ``trained on``, and the organ.
        slide_picture: Data URI of the tiles as they are.
        token_picture: Data URI of their tokens' colours, one pixel a patch.
        n_tiles: Tiles shown.
        is_part: Whether only a part of the slide's tiles is shown.
        width: Of both pictures, patches.
        height: Of both pictures, patches.
    """

    slide_id: str
    role: str
    slide_picture: str
    token_picture: str
    n_tiles: int
    is_part: bool
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class PatchMapSection:
    """Maps of slides in the same colours.

    Attributes:
        maps: One a slide.
        explained: Share of the tokens' variance along red, green and blue, in words.
        patch_um: Edge of a patch, micrometres.
    """

    maps: tuple[PatchMap, ...]
    explained: str
    patch_um: float


@dataclass(frozen=True, kw_only=True, eq=False)
class _Window:
    """Contiguous grid tiles of one slide: cells, pixels, tokens and which of those are tissue."""

    row: SlideRow
    cells: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    tokens_BND: NDArray[np.float32]
    is_tissue_BN: NDArray[np.bool_]
    is_part: bool


def patch_map_section(contents: Contents) -> PatchMapSection | None:
    """Maps of one slide held out and one trained on; None without slides or encoder."""
    if contents.catalogue is None or contents.encoder is None:
        return None
    windows = []
    seen = trained_on(contents)
    for candidates in _candidates(contents.catalogue, seen):
        found = next(_readable(contents.catalogue, contents.encoder, candidates), None)
        if found is not None:
            windows.append(found)
    tokens = [window.tokens_BND[window.is_tissue_BN] for window in windows]
    if sum(len(part) for part in tokens) < 2:
        return None
    mapping = fit_patch_pca(tokens)
    explained = " + ".join(f"{share:.0%}" for share in mapping.explained_K)
    patch_px = contents.encoder.model.patch_px
    return PatchMapSection(
        maps=tuple(
            _drawn(
                window,
                mapping.rgb(window.tokens_BND),
                is_trained_on=window.row.slide_id in seen,
            )
            for window in windows
        ),
        explained=explained,
        patch_um=patch_px * contents.encoder.config.mpp,
    )


def _candidates(catalogue: Catalogue, trained_on: Container[str]) -> list[list[SlideRow]]:
    """Held-out slides and trained-on ones, first choice first, of one organ where possible."""
    every = catalogue.spread(MOST_SORTED).rows()
    rows = sorted(every, key=lambda row: (-row.tissue_area_mm2, row.slide_id))
    held_out = [row for row in rows if row.slide_id not in trained_on and row.tissue_area_mm2 > 0]
    seen = [row for row in rows if row.slide_id in trained_on and row.tissue_area_mm2 > 0]
    organs = {row.tissue for row in seen}
    held_out.sort(key=lambda row: row.tissue is None or row.tissue not in organs)
    organ = held_out[0].tissue if held_out else None
    seen.sort(key=lambda row: row.tissue is None or row.tissue != organ)
    return [side for side in (held_out, seen) if side]


def _readable(
    catalogue: Catalogue, encoder: TileEncoder, candidates: Sequence[SlideRow]
) -> Iterator[_Window]:
    """Windows of the slides that can be read; at most three are tried."""
    for row in candidates[:3]:
        try:
            window = _window(catalogue, encoder, row)
        except AnlageError as error:
            LOGGER.warning("no map of patch tokens: %s", error)
            continue
        if window is not None:
            yield window


def _window(catalogue: Catalogue, encoder: TileEncoder, row: SlideRow) -> _Window | None:
    config = encoder.config
    tissue = catalogue.mask(row.slide_id)
    spec = TileSpec(
        size_px=config.tile_px, mpp=config.mpp, stride_px=config.tile_px, min_tissue=MIN_TISSUE
    )
    corners = tile_grid(
        tissue.mask,
        mask_mpp=tissue.mpp,
        slide_mpp=row.mpp,
        spec=spec,
        slide_size=(row.width, row.height),
    )
    if len(corners) == 0:
        return None
    step = level0_px(config.tile_px, mpp=config.mpp, slide_mpp=row.mpp)
    cells = np.rint(corners / step).astype(np.int64)
    keep = densest_window(cells, most=_n_affordable(encoder))
    with catalogue.open_slide(row.slide_id) as slide:
        pixels = np.stack(
            [
                read_tile(slide, x, y, size_px=config.tile_px, mpp=config.mpp)
                for x, y in corners[keep].tolist()
            ]
        )
    per_mask_px = level0_px(1, mpp=tissue.mpp, slide_mpp=row.mpp)
    n_patches = config.tile_px // encoder.model.patch_px
    is_tissue_BN = _is_tissue(
        tissue.mask, corners[keep] / per_mask_px, step / per_mask_px, n_patches
    )
    return _Window(
        row=row,
        cells=cells[keep] - cells[keep].min(axis=0),
        pixels=pixels,
        tokens_BND=_tokens(encoder, pixels),
        is_tissue_BN=is_tissue_BN,
        is_part=len(keep) < len(corners),
    )


def densest_window(cells: NDArray[np.int64], *, most: int) -> NDArray[np.int64]:
    """Rows of the cells in the square window of at most ``most`` cells that holds most of them.

    Args:
        cells: (L, 2) column and row of each grid tile.
        most: Cells that may be shown; all are if there are no more.

    Returns:
        (n,) int64 rows of ``cells``, rising; n <= ``most``.
    """
    if len(cells) <= most:
        return np.arange(len(cells))
    edge = int(most**0.5)
    place = cells - cells.min(axis=0)
    occupied = np.zeros(place.max(axis=0)[::-1] + 1, dtype=np.int64)
    occupied[place[:, 1], place[:, 0]] = 1
    area = np.pad(occupied.cumsum(0).cumsum(1), ((1, edge), (1, edge)), mode="edge")
    area[0], area[:, 0] = 0, 0
    held = area[edge:, edge:] - area[:-edge, edge:] - area[edge:, :-edge] + area[:-edge, :-edge]
    top, left = np.unravel_index(held.argmax(), held.shape)
    corner = np.array([left, top])
    return np.flatnonzero(((place >= corner) & (place < corner + edge)).all(axis=1))


def _n_affordable(encoder: TileEncoder) -> int:
    """Tiles that fit the budget of one slide."""
    n_parameters = sum(p.numel() for p in encoder.model.parameters())
    n_tokens = (encoder.config.tile_px // encoder.model.patch_px) ** 2
    return int(np.clip(MULTIPLICATIONS / (n_parameters * n_tokens), FEWEST_TILES, MOST_TILES))


def _tokens(encoder: TileEncoder, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    all_B3HW = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
    parts = [encoder.patch_tokens(pixels_B3HW) for pixels_B3HW in torch.split(all_B3HW, BATCH)]
    return np.concatenate([part.cpu().numpy() for part in parts])


def _is_tissue(
    mask: NDArray[np.bool_], corners: NDArray[np.float64], edge: float, n_patches: int
) -> NDArray[np.bool_]:
    """(B, N) whether the middle of each patch lies on tissue; corners and edge in mask pixels."""
    middle = (np.arange(n_patches) + 0.5) / n_patches * edge
    x = (corners[:, 0, None, None] + middle[None, None, :]).astype(np.intp)
    y = (corners[:, 1, None, None] + middle[None, :, None]).astype(np.intp)
    x, y = np.broadcast_arrays(x.clip(0, mask.shape[1] - 1), y.clip(0, mask.shape[0] - 1))
    return np.asarray(mask[y, x].reshape(len(corners), -1))


def _drawn(window: _Window, rgb_BN3: NDArray[np.uint8], *, is_trained_on: bool) -> PatchMap:
    n = round(rgb_BN3.shape[1] ** 0.5)
    rgba = np.dstack([rgb_BN3, np.where(window.is_tissue_BN, WHITE, 0)]).astype(np.uint8)
    tokens = _painted(window.cells, rgba.reshape(-1, n, n, 4), blank=0)
    edge = max(n, min(window.pixels.shape[1], PICTURE_PX // max(tokens.shape[:2]) * n))
    tiles = [cv2.resize(tile, (edge, edge), interpolation=cv2.INTER_AREA) for tile in window.pixels]
    organ = (window.row.tissue or "").replace("_", " ")
    role = "trained on" if is_trained_on else "held out of pretraining"
    return PatchMap(
        slide_id=window.row.slide_id,
        role=f"{organ}, {role}" if organ else role,
        slide_picture=jpeg_uri(_painted(window.cells, np.stack(tiles), blank=WHITE)),
        token_picture=png_uri(tokens),
        n_tiles=len(window.cells),
        is_part=window.is_part,
        width=tokens.shape[1],
        height=tokens.shape[0],
    )


def _painted(
    cells: NDArray[np.int64], tiles: NDArray[np.uint8], *, blank: int
) -> NDArray[np.uint8]:
    """Tiles (B, S, S, C) put on their cells of one picture."""
    edge, n_channels = tiles.shape[1], tiles.shape[3]
    columns, rows = cells.max(axis=0) + 1
    picture = np.full((rows * edge, columns * edge, n_channels), blank, dtype=np.uint8)
    for (column, row), tile in zip(cells.tolist(), tiles, strict=True):
        picture[row * edge : (row + 1) * edge, column * edge : (column + 1) * edge] = tile
    return picture
