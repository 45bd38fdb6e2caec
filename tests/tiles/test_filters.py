"""Filters against slow definitions, known pictures, and the real data's false positives."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from anlage.tiles.filters import INKS, BlurFilter, HsvTissueFilter, PenFilter, TileFilters

Picture = NDArray[np.uint8]
INK_COLOURS = {
    "blue": [(30, 65, 130), (37, 95, 160), (20, 40, 150)],
    "green": [(30, 75, 60), (45, 115, 100), (20, 120, 40)],
    "red": [(200, 25, 30), (150, 10, 15), (230, 30, 35)],
    "black": [(20, 20, 25), (35, 30, 30), (5, 5, 5)],
}
PINK, PURPLE, BROWN = (225, 160, 200), (110, 70, 150), (120, 80, 50)


def painted(*, tissue: tuple[int, int, int], ink: tuple[int, int, int] | None, share: float = 0.5):
    tile = np.random.default_rng(3).normal(tissue, 5, (64, 64, 3))
    if ink is not None:
        tile[: round(64 * share)] = np.random.default_rng(4).normal(
            ink, 2, (round(64 * share), 64, 3)
        )
    return np.clip(tile, 0, 255).astype(np.uint8)


def hsv_by_definition(tile: Picture) -> NDArray[np.float64]:
    """Hue in half degrees, saturation and value from 0 to 255, by the textbook, one by one."""
    out = np.zeros(tile.shape)
    for at in np.ndindex(tile.shape[:2]):
        r, g, b = (float(v) for v in tile[at])
        most, spread = max(r, g, b), max(r, g, b) - min(r, g, b)
        hue = 0.0
        if spread:
            if most == r:
                hue = 60 * (g - b) / spread
            elif most == g:
                hue = 120 + 60 * (b - r) / spread
            else:
                hue = 240 + 60 * (r - g) / spread
        out[at] = hue % 360 / 2, 255 * spread / most if most else 0.0, most
    return out


def share_by_definition(tile: Picture, boxes) -> float:
    """Share of pixels within a box; those within half a step of a bound may go either way."""
    hsv = np.rint(hsv_by_definition(tile))
    inside = [
        all(low <= v <= high for v, (low, high) in zip(pixel, box, strict=True))
        for box in boxes
        for pixel in hsv.reshape(-1, 3)
    ]
    return sum(inside) / (tile.shape[0] * tile.shape[1])


def laplacian_variance_by_definition(grey: NDArray[np.float64]) -> float:
    padded = np.pad(grey, 1, mode="reflect")
    middle = padded[1:-1, 1:-1]
    beside = padded[2:, 1:-1] + padded[:-2, 1:-1] + padded[1:-1, 2:] + padded[1:-1, :-2]
    return float((beside - 4 * middle).var())


@pytest.mark.parametrize("seed", range(4))
def test_the_hsv_share_is_the_one_by_definition(seed: int) -> None:
    random = np.random.default_rng(seed)
    tile = random.integers(0, 256, (24, 24, 3)).astype(np.uint8)
    share = share_by_definition(tile, [((90, 180), (8, 255), (103, 255))])
    slack = 5 / 24**2  # pixels whose rounding lies on a bound
    assert HsvTissueFilter(min_share=max(share - slack, 0)).keeps(tile, mpp=0.5)
    assert not HsvTissueFilter(min_share=share + slack).keeps(tile, mpp=0.5)


def test_hsv_keeps_stained_tissue_and_drops_glass() -> None:
    assert HsvTissueFilter().keeps(painted(tissue=PINK, ink=None), mpp=0.5)
    assert HsvTissueFilter().keeps(painted(tissue=PURPLE, ink=None), mpp=0.5)
    assert not HsvTissueFilter().keeps(np.full((64, 64, 3), 244, np.uint8), mpp=0.5)
    assert not HsvTissueFilter().keeps(painted(tissue=BROWN, ink=None), mpp=0.5)


def test_the_hsv_share_counts_from_its_least_on() -> None:
    tile = np.full((10, 10, 3), 255, np.uint8)
    tile[:6] = PINK
    assert HsvTissueFilter(min_share=0.6).keeps(tile, mpp=0.5)
    assert not HsvTissueFilter(min_share=0.601).keeps(tile, mpp=0.5)


@pytest.mark.parametrize("seed", range(4))
def test_the_pen_share_is_the_one_by_definition(seed: int) -> None:
    tile = np.random.default_rng(seed).integers(0, 256, (24, 24, 3)).astype(np.uint8)
    share = share_by_definition(tile, [box for ink in INKS.values() for box in ink])
    slack = 5 / 24**2
    assert PenFilter(max_share=share + slack).keeps(tile, mpp=0.5)
    assert not PenFilter(max_share=share - slack).keeps(tile, mpp=0.5)


@pytest.mark.parametrize("ink", INKS)
def test_each_ink_is_found_on_tissue_and_only_where_it_is_asked_for(ink: str) -> None:
    others = tuple(name for name in INKS if name != ink)
    for colour in INK_COLOURS[ink]:
        for tissue in (PINK, PURPLE, BROWN):
            tile = painted(tissue=tissue, ink=colour, share=0.2)
            assert not PenFilter().keeps(tile, mpp=0.5), (ink, colour)
            assert not PenFilter(inks=(ink,)).keeps(tile, mpp=0.5)
            assert PenFilter(inks=others).keeps(tile, mpp=0.5)
            assert PenFilter(max_share=0.25).keeps(tile, mpp=0.5)


def test_the_boxes_of_inks_do_not_overlap() -> None:
    grid = np.stack(np.meshgrid(*(np.arange(0, n, 3) for n in (180, 256, 256)), indexing="ij"), -1)
    n_boxes = np.zeros(grid.shape[:3], int)
    for low_high in (np.array(box) for ink in INKS.values() for box in ink):
        n_boxes += ((grid >= low_high[:, 0]) & (grid <= low_high[:, 1])).all(-1)
    assert n_boxes.max() == 1


@pytest.mark.parametrize("sigma", [0.6, 1.5])
def test_the_variance_of_the_laplacian_is_the_one_by_definition(sigma: float) -> None:
    noise = np.random.default_rng(1).normal(128, 60, (40, 40)).clip(0, 255).astype(np.uint8)
    grey = cv2.GaussianBlur(noise, (0, 0), sigma)
    variance = laplacian_variance_by_definition(grey.astype(np.float64))
    tile = np.repeat(grey[:, :, None], 3, axis=2)
    assert BlurFilter(min_variance=variance * 0.999).keeps(tile, mpp=1.0)
    assert not BlurFilter(min_variance=variance * 1.001).keeps(tile, mpp=1.0)


def test_focus_is_judged_at_one_resolution() -> None:
    """A tile twice as fine has the same verdict as its area-reduced half."""
    coarse = np.random.default_rng(2).integers(60, 200, (32, 32, 1)).astype(np.uint8)
    coarse = np.repeat(coarse, 3, axis=2)
    fine = coarse.repeat(2, axis=0).repeat(2, axis=1)
    variance = laplacian_variance_by_definition(coarse[..., 0].astype(np.float64))
    for tile, mpp in ((coarse, 1.0), (fine, 0.5)):
        assert BlurFilter(mpp=1.0, min_variance=variance * 0.999).keeps(tile, mpp=mpp)
        assert not BlurFilter(mpp=1.0, min_variance=variance * 1.001).keeps(tile, mpp=mpp)


def test_a_tile_too_coarse_to_judge_is_refused() -> None:
    with pytest.raises(ValueError, match=r"BlurFilter: needs tiles of at most 1 mpp; got 2\."):
        BlurFilter().keeps(np.zeros((8, 8, 3), np.uint8), mpp=2.0)


def test_filters_judge_in_a_fixed_order() -> None:
    assert TileFilters().chosen() == ()
    chosen = TileFilters(pen=PenFilter(), hsv=HsvTissueFilter()).chosen()
    assert [one.name for one in chosen] == ["hsv", "pen"]


def pictures(folder: Path, *, every: int) -> list[Picture]:
    rows = list(csv.DictReader((folder / "labels.csv").open()))[::every]
    return [cv2.cvtColor(cv2.imread(str(folder / r["file"])), cv2.COLOR_BGR2RGB) for r in rows]


def stained_tiles(path: Path) -> Iterator[Picture]:
    """256 px tiles of a slide's finest level of which a third is not glass."""
    with tifffile.TiffFile(path) as file:
        level = file.series[0].levels[0].asarray()[..., :3]
    for y in range(0, level.shape[0] - 255, 256):
        for x in range(0, level.shape[1] - 255, 256):
            tile = np.ascontiguousarray(level[y : y + 256, x : x + 256])
            if (tile.min(-1) < 215).mean() > 0.3:
                yield tile


def test_real_he_tiles_pass_the_pen_and_blur_filters(shared_data: Path) -> None:
    for name in ("atlas_organs", "lc25000_mini"):
        tiles = pictures(shared_data / "tiles" / name, every=10)
        assert len(tiles) > 90
        assert all(PenFilter().keeps(tile, mpp=0.5) for tile in tiles)
        assert all(BlurFilter().keeps(tile, mpp=0.5) for tile in tiles)
        blurred = [cv2.GaussianBlur(tile, (0, 0), 5) for tile in tiles]  # 2.5 micrometres
        assert not any(BlurFilter().keeps(tile, mpp=0.5) for tile in blurred)


def test_stains_that_no_pen_filter_rejects_and_those_it_does(shared_data: Path) -> None:
    """The docstring's rates: IHC with DAB passes; Giemsa blue and light green look like ink."""

    def rate(name: str) -> float:
        folder = "native" if name.startswith("OS") else "wholeslide"
        tiles = list(stained_tiles(shared_data / "slides" / folder / name))
        assert len(tiles) >= 20
        return sum(not PenFilter().keeps(tile, mpp=0.5) for tile in tiles) / len(tiles)

    assert rate("helicobacterpylori__IHC.tiff") == 0
    assert rate("OS-2-ndpi_Ki67.ome.tif") == 0
    assert rate("PASAB__PASAB.tiff") == 0
    assert rate("helicobacterpylori__giemsa.tiff") == 1
    assert rate("brain-mucormycosis__GMS.tiff") == pytest.approx(5 / 6, abs=0.03)
