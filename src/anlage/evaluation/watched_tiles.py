"""Labelled tiles from files, in memory, for a training run to be watched on."""

# Shape suffixes: N tiles, 3 channels, S pixels of an edge.

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anlage.errors import LabelledDataError
from anlage.evaluation.labelled_tiles import LabelledTiles
from anlage.evaluation.tile_pixels import fit_tile, read_tile_file
from anlage.progress import meter
from anlage.provenance import sha256_of_json
from anlage.training.watched_tiles import WatchedTiles


def watched_tiles(
    path: str | Path,
    *,
    tile_px: int,
    mpp: float,
    most: int = 2000,
    seed: int = 0,
    where: Mapping[str, str] | None = None,
) -> WatchedTiles:
    """Read labelled tiles for ``anlage pretrain`` to probe its encoder on as it goes.

    Of more than ``most`` tiles, whole groups (patients) are taken, never a part of one: groups of
    each class are put in an order by the seed, and the class with the fewest tiles so far gets its
    next group, as long as that keeps within ``most``. Each class keeps two groups or more. A
    column ``fold`` is kept to; without one, groups are dealt into folds by the run.

    Tiles that choose an encoder (``watch.keep_best``) say too well of it; keep those of a final
    test out, with ``where={"split": "train"}`` for example.

    Memory: ``most * 3 * tile_px**2`` bytes, 0.3 GB for 2,000 tiles of 224 px, for the whole run.

    Args:
        path: A CSV or a folder, as ``LabelledTiles.open`` reads it.
        tile_px: Edge of the tiles that the encoder embeds.
        mpp: Resolution of those tiles, micrometres per pixel.
        most: Tiles at most.
        seed: Of the order of groups.
        where: Columns and the values they need to have; other rows are left out.

    Raises:
        LabelledDataError: If tiles cannot be read, have one class, a class has one group, or two
            groups of each class are more than ``most`` tiles.
    """
    tiles = LabelledTiles.open(path, where=where)
    rows = _whole_groups(tiles, most=most, seed=seed)
    pixels_N3SS = np.empty((len(rows), 3, tile_px, tile_px), dtype=np.uint8)
    with meter("read watched tiles", total=len(rows), unit="tiles") as progress:
        for slot, row in enumerate(rows.tolist()):
            shrink = None if np.isnan(tiles.mpp_N[row]) else mpp / float(tiles.mpp_N[row])
            pixels = read_tile_file(tiles.folder / tiles.file_N[row])
            pixels_N3SS[slot] = fit_tile(pixels, tile_px=tile_px, shrink=shrink)[0].transpose(
                2, 0, 1
            )
            progress.advance()
    return WatchedTiles(
        path=tiles.path,
        pixels_N3SS=pixels_N3SS,
        label_N=tiles.label_N[rows],
        group_N=tiles.group_N[rows],
        fold_N=None if tiles.fold_N is None else tiles.fold_N[rows],
        fingerprint=sha256_of_json([tiles.fingerprint, rows.tolist(), tile_px, mpp]),
    )


def _whole_groups(tiles: LabelledTiles, *, most: int, seed: int) -> NDArray[np.int64]:
    """Rows of the groups that are taken, rising; all if they are few enough."""
    if len(tiles) <= most:
        return np.arange(len(tiles))
    name_G, code_N = np.unique(tiles.group_N, return_inverse=True)
    class_C, label_N = np.unique(tiles.label_N, return_inverse=True)
    count_GC = np.zeros((len(name_G), len(class_C)), dtype=np.int64)
    np.add.at(count_GC, (code_N, label_N), 1)
    order_G = np.random.default_rng((seed, len(name_G))).permutation(len(name_G))
    is_taken_G = np.zeros(len(name_G), dtype=bool)
    is_full_C = np.zeros(len(class_C), dtype=bool)
    while not is_full_C.all():
        so_far_C = count_GC[is_taken_G].sum(axis=0)
        poorest = int(np.where(is_full_C, np.iinfo(np.int64).max, so_far_C).argmin())
        left = [g for g in order_G.tolist() if count_GC[g, poorest] and not is_taken_G[g]]
        room = most - int(so_far_C.sum())
        fitting = [g for g in left if count_GC[g].sum() <= room]
        if fitting:
            is_taken_G[fitting[0]] = True
        else:
            is_full_C[poorest] = True
    _refuse_too_few(tiles, class_C, count_GC, is_taken_G, most=most)
    return np.flatnonzero(is_taken_G[code_N])


def _refuse_too_few(
    tiles: LabelledTiles,
    class_C: NDArray[np.str_],
    count_GC: NDArray[np.int64],
    is_taken_G: NDArray[np.bool_],
    *,
    most: int,
) -> None:
    taken_C, all_C = ((rows > 0).sum(axis=0) for rows in (count_GC[is_taken_G], count_GC))
    short = np.flatnonzero((taken_C < 2) & (all_C >= 2))
    if len(short):
        message = (
            f"needs two {tiles.group_column}s of each class within {most} watched tiles; got "
            f"{taken_C[short[0]]} of class {str(class_C[short[0]])!r}, since its groups are large"
        )
        raise LabelledDataError(
            tiles.path, f"{message}. Give fewer tiles a group, or allow more than {most} tiles."
        )
