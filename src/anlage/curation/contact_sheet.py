"""What clusters look like: some of their tiles, read from the slides, side by side.

Shape suffixes: N tiles of the pool, C clusters of the coarsest level.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anlage.curation.balanced_sample import balanced_sample
from anlage.curation.curate import Curation
from anlage.curation.pool import TilePool
from anlage.curation.tile_pixels import read_pool_tiles
from anlage.errors import AnlageError
from anlage.files import replace_whole
from anlage.progress import meter
from anlage.slides.catalogue import Catalogue

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Pixels = NDArray[np.uint8]
THUMBNAIL_PX, GAP_PX, COLUMNS = 96, 4, 8
MOST_NAMED = 4
PAPER, UNREADABLE = 255, 200  # grey levels


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterLook:
    """A cluster of the coarsest level, in numbers and pictures.

    Attributes:
        number: Of the cluster, the first of its tiles' path.
        n_tiles: Its tiles that are left of the pool.
        n_finest: Finest clusters in it.
        n_listed: Its tiles in the list.
        share: Its share of the draws.
        n_slides: Slides that its tiles lie on.
        slides: Slides with the most of its tiles, and how many.
        labels: For each column of the catalogue, its values with the most tiles, and how many.
        thumbnails: Of some of its tiles, listed ones where there are any, (96, 96, 3) uint8 each.
    """

    number: int
    n_tiles: int
    n_finest: int
    n_listed: int
    share: float
    n_slides: int
    slides: tuple[tuple[str, int], ...]
    labels: Mapping[str, tuple[tuple[str, int], ...]]
    thumbnails: tuple[Pixels, ...]


def look_at_clusters(
    made: Curation,
    catalogue: Catalogue,
    *,
    labels: Sequence[str] = ("tissue", "stain"),
    n_shown: int = 24,
    seed: int = 0,
) -> list[ClusterLook]:
    """Describe each cluster of the coarsest level and read thumbnails of some of its tiles.

    Tiles are drawn in equal shares of the finer clusters and shown in their order.

    Args:
        made: The curated pool.
        catalogue: Opens its slides and knows their labels.
        labels: Columns of the catalogue that are counted, those that are there.
        n_shown: Thumbnails a cluster.
        seed: Seed of the draw.
    """
    rows_of = _rows_of_clusters(made)
    numbers = sorted(rows_of)
    weight_N = np.zeros(len(made.pool))
    weight_N[made.chosen_M] = made.weight_M
    shown = {
        number: _shown(made, rows_of[number], weight_N, n=n_shown, seed=seed) for number in numbers
    }
    pictures = thumbnails(made.pool, catalogue, np.concatenate([*shown.values()]))
    slide_labels = {name: _values(catalogue, name, made.pool.slide_ids) for name in labels}
    return [
        _look(
            made,
            number,
            rows_of[number],
            weight_N,
            labels={name: values for name, values in slide_labels.items() if values is not None},
            pictures=tuple(pictures[row] for row in shown[number].tolist()),
        )
        for number in numbers
    ]


def thumbnails(
    pool: TilePool, catalogue: Catalogue, rows: Integers, *, px: int = THUMBNAIL_PX
) -> dict[int, Pixels]:
    """Small pictures of tiles, (px, px, 3) uint8 by row; grey where a tile cannot be read."""
    found: dict[int, Pixels] = {}
    with meter("thumbnails", total=len(rows), unit="tiles") as progress:
        for slide in np.unique(pool.slide_N[rows]).tolist():
            of_slide = np.sort(rows[pool.slide_N[rows] == slide])
            for row, pixels in read_pool_tiles(pool, catalogue, of_slide):
                if isinstance(pixels, AnlageError):
                    found[row] = np.full((px, px, 3), UNREADABLE, np.uint8)
                else:
                    small = cv2.resize(pixels, (px, px), interpolation=cv2.INTER_AREA)
                    found[row] = np.asarray(small, np.uint8)
            progress.advance(len(of_slide))
    return found


def contact_sheet(pictures: Sequence[Pixels], *, n_columns: int = COLUMNS) -> Pixels:
    """Pictures of one size in rows, with white between; (height, width, 3) uint8."""
    edge = THUMBNAIL_PX if not pictures else len(pictures[0])
    step, n_rows = edge + GAP_PX, max(-(-len(pictures) // n_columns), 1)
    sheet = np.full((n_rows * step + GAP_PX, n_columns * step + GAP_PX, 3), PAPER, np.uint8)
    for number, picture in enumerate(pictures):
        row, column = divmod(number, n_columns)
        y, x = GAP_PX + row * step, GAP_PX + column * step
        sheet[y : y + edge, x : x + edge] = picture
    return sheet


def write_sheets(looks: Iterable[ClusterLook], folder: Path) -> list[Path]:
    """Write one PNG a cluster, ``cluster_0007.png``, in place of all that were there; the files.

    Raises:
        OSError: If the disk is full or refuses.
    """
    for old in folder.glob("cluster_*.png"):
        old.unlink()
    written = []
    for look in looks:
        path = folder / f"cluster_{look.number:04d}.png"
        with replace_whole(path) as beside:
            Image.fromarray(contact_sheet(look.thumbnails)).save(beside, format="png")
        written.append(path)
    return written


def _rows_of_clusters(made: Curation) -> dict[int, Integers]:
    if made.path_NT.shape[1] == 0:
        return {0: np.arange(len(made.pool))}
    top_N = made.path_NT[:, 0]
    order = np.argsort(top_N, kind="stable")
    numbers, starts = np.unique(top_N[order], return_index=True)
    return dict(zip(numbers.tolist(), np.split(order, starts[1:]), strict=True))


def _shown(made: Curation, rows: Integers, weight_N: Floats, *, n: int, seed: int) -> Integers:
    listed = rows[weight_N[rows] > 0]
    chosen = listed if len(listed) else rows
    finer = made.path_NT[chosen, 1:]
    drawn = chosen[balanced_sample(finer, min(n, len(chosen)), seed=seed)]
    return drawn[np.lexsort(made.path_NT[drawn].T[::-1])] if made.path_NT.shape[1] else drawn


def _look(
    made: Curation,
    number: int,
    rows: Integers,
    weight_N: Floats,
    *,
    labels: Mapping[str, Sequence[str]],
    pictures: tuple[Pixels, ...],
) -> ClusterLook:
    slide_ids = made.pool.slide_ids
    n_of_slide = np.bincount(made.pool.slide_N[rows], minlength=len(slide_ids)).tolist()
    n_levels = made.path_NT.shape[1]
    return ClusterLook(
        number=number,
        n_tiles=len(rows),
        n_finest=len(np.unique(made.path_NT[rows, -1])) if n_levels else 1,
        n_listed=int((weight_N[rows] > 0).sum()),
        share=float(weight_N[rows].sum() / weight_N.sum()),
        n_slides=sum(n > 0 for n in n_of_slide),
        slides=_most(slide_ids, n_of_slide),
        labels={name: _most(values, n_of_slide) for name, values in labels.items()},
        thumbnails=pictures,
    )


def _most(value_of_slide: Sequence[str], n_of_slide: Sequence[int]) -> tuple[tuple[str, int], ...]:
    """The values with the most tiles, and how many."""
    counts: Counter[str] = Counter()
    for value, n in zip(value_of_slide, n_of_slide, strict=True):
        counts[value] += n
    found = sorted((-n, value) for value, n in counts.items() if n)
    return tuple((value, -n) for n, value in found[:MOST_NAMED])


def _values(catalogue: Catalogue, name: str, slide_ids: Sequence[str]) -> list[str] | None:
    """A column's value of each slide of the pool; None if no slide has one."""
    if name not in catalogue.column_names:
        return None
    ids, values = (catalogue.column(column).to_pylist() for column in ("slide_id", name))
    of_slide = dict(zip(ids, values, strict=True))
    found = [of_slide[slide] for slide in slide_ids]
    return ["none" if v is None else str(v) for v in found] if any(found) else None
