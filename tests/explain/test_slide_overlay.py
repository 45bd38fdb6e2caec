"""TIFF and PNG overlays: read by tifffile and OpenSlide, at the slide's scale, in little memory."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image
from scored_tiles import scored
from synthetic_slides import ArraySlide, tissue_like

from anlage.explain.slide_heat import OPACITY, WITHOUT_WEIGHT, colours_of
from anlage.explain.slide_overlay import legend, read_backdrop, write_png, write_tiff


def test_a_tile_is_where_it_is_on_every_page(tmp_path) -> None:
    # at 1 mpp a page-0 pixel is 2 level-0 pixels; 128 px tiles at 256, 512 and at 1536, 1024
    tiles = scored([[256, 512], [1536, 1024]], [0.9, 0.1], edge=128.0, size=(2200, 1501), mpp=1.0)
    pages = write_tiff(tmp_path / "a.tiff", tiles, tiles.scores[0], None)
    assert [page.downsample for page in pages] == [2, 4, 8, 16]
    bright = colours_of(np.array(1.0))
    with tifffile.TiffFile(tmp_path / "a.tiff") as tiff:
        assert len(tiff.pages) == 4
        for page, heatmap in zip(tiff.pages, pages, strict=True):
            pixels, d = page.asarray(), int(heatmap.downsample)
            assert pixels.shape == (-(-1501 // d), -(-2200 // d), 3)
            assert page.is_tiled
            wanted = np.zeros(pixels.shape[:2], bool)
            wanted[512 // d : 640 // d, 256 // d : 384 // d] = True
            np.testing.assert_array_equal((pixels == bright).all(axis=2), wanted)
            per_cm = page.tags["XResolution"].value
            assert abs(1e4 * per_cm[1] / per_cm[0] - 1.0 * d) < 1e-6 * d
            assert page.tags["ResolutionUnit"].value == 3


def test_openslide_reads_it_at_the_slides_scale(tmp_path) -> None:
    corners = [[1024, 2048], [1536, 2048]]
    tiles = scored(corners, [0.1, 0.9], edge=512.0, size=(9000, 6001), mpp=0.25)
    write_tiff(tmp_path / "a.tiff", tiles, tiles.scores[0], None)
    with openslide.OpenSlide(str(tmp_path / "a.tiff")) as slide:
        assert slide.dimensions == (1125, 751)  # 8 level-0 pixels each: 2 µm
        assert float(slide.properties["openslide.mpp-x"]) == 2.0
        np.testing.assert_allclose(slide.level_downsamples, [1, 2, 4, 8], rtol=0.01)
        x, y = 1536 // 8, 2048 // 8
        region = np.asarray(slide.read_region((x, y), 0, (64, 64)))[..., :3]
        assert (region == colours_of(np.array(1.0))).all()
        beyond = np.asarray(slide.read_region((x + 64, y), 0, (1, 64)))[..., :3]
        assert (beyond == 255).all()


def test_over_the_slide_itself(tmp_path) -> None:
    slide = ArraySlide([tissue_like(500, 390)], mpp=1.0)
    tiles = scored([[64, 64]], [1.0], edge=64.0, mpp=1.0)
    picture = read_backdrop(slide, tiles)
    assert picture.shape == (390, 500, 3)
    write_tiff(tmp_path / "a.tiff", tiles, tiles.scores[0], picture)
    pixels = tifffile.imread(tmp_path / "a.tiff", key=0)
    inside = np.zeros(pixels.shape[:2], bool)
    inside[64:128, 64:128] = True
    np.testing.assert_array_equal(pixels[~inside], picture[~inside])
    mixed = OPACITY * colours_of(np.array(1.0)) + (1 - OPACITY) * picture[inside]
    assert np.abs(pixels[inside] - mixed).max() <= 1


def test_a_png_begins_at_the_slides_corner(tmp_path) -> None:
    tiles = scored([[256, 512]], [0.4], edge=128.0, size=(9000, 3000), mpp=1.0)
    heatmap = write_png(tmp_path / "a.png", tiles, tiles.scores[0], None)
    assert heatmap.downsample == 8
    pixels = np.asarray(Image.open(tmp_path / "a.png"))
    is_bright = (pixels[: heatmap.size.height] == colours_of(np.array(1.0))).all(axis=2)
    wanted = np.zeros_like(is_bright)
    wanted[64:80, 32:48] = True
    np.testing.assert_array_equal(is_bright, wanted)
    assert pixels.shape == (375 + 76, 1125, 3)


def test_a_legend_tells_of_tiles_without_weight() -> None:
    some = legend(scored([[0, 0], [9, 9]], [0.5, 0.0]).scores[0])
    every = legend(scored([[0, 0], [9, 9]], [0.5, 0.2]).scores[0])
    assert (some == WITHOUT_WEIGHT).all(axis=2).any()
    assert not (every == WITHOUT_WEIGHT).all(axis=2).any()


MEMORY = """
import resource, sys
import numpy as np
from scored_tiles import scored
from sparse_slide import SparseSlide
from anlage.explain.slide_overlay import read_backdrop, write_png, write_tiff
slide = SparseSlide(100_000, 100_000, mpp=0.25, downsamples=(1, 16))
side = np.arange(40_000, 60_000, 512)
corners = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
tiles = scored(corners, np.random.default_rng(0).random(len(corners)), edge=512.0,
               size=(100_000, 100_000), mpp=0.25)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
picture = read_backdrop(slide, tiles)
write_tiff(sys.argv[1] + "/a.tiff", tiles, tiles.scores[0], picture)
write_png(sys.argv[1] + "/a.png", tiles, tiles.scores[0], picture)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_memory_is_bounded_on_a_large_slide(tmp_path) -> None:
    """100,000 x 100,000 px: the picture of 6,250 x 6,250 takes 112 MB, the rest about as much."""
    ran = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(ran.stdout) < 450
