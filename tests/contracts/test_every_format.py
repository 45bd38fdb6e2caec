"""One picture in every format that can hold it without loss: each reader gives it back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import tifffile
from dicom_slides import DicomWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from openslide import ImageSlide
from openslide.deepzoom import DeepZoomGenerator
from PIL import Image
from synthetic_slides import TILE, halved, tissue_like, write_tiff
from tiff_dialects import jpeg2000, write_cog, write_philips, write_svs

from anlage.errors import SlideError
from anlage.slides.reader import SlideReader, open_slide

WIDTH, HEIGHT = 384, 256  # whole tiles of 64, as the first page of a Philips TIFF has
LEVELS = [tissue_like(WIDTH, HEIGHT)]
LEVELS.append(halved(LEVELS[0]))
BESIDE = {"label": tissue_like(30, 20), "macro": tissue_like(40, 20)}


def ome(path: Path) -> Path:
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(LEVELS[0], photometric="rgb", tile=TILE, subifds=1, metadata={"axes": "YXS"})
        writer.write(LEVELS[1], photometric="rgb", tile=TILE, subfiletype=1)
    return path


def deep_zoom(path: Path) -> Path:
    made = DeepZoomGenerator(ImageSlide(Image.fromarray(LEVELS[0])), 62, 2)
    finest = made.level_count - 1
    for level in range(made.level_count):
        folder = path.parent / f"{path.stem}_files" / str(level)
        folder.mkdir(parents=True)
        columns, rows = made.level_tiles[level]
        for column, row in product(range(columns), range(rows)):
            tile = made.get_tile(level, (column, row))
            if level == finest - 1:  # OpenSlide halves tile by tile, in its own way
                left, top = (max(i * 62 - 2, 0) for i in (column, row))
                tile = Image.fromarray(LEVELS[1][top : row * 62 + 64, left : column * 62 + 64])
            tile.save(folder / f"{column}_{row}.png")
    path.write_text(made.get_dzi("png"))
    return path


def png(path: Path) -> Path:
    Image.fromarray(LEVELS[0]).save(path)
    return path


FORMATS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "generic": ("a.tiff", lambda path: write_tiff(path, LEVELS, compression="deflate")),
    "aperio": (
        "a.svs",
        lambda path: write_svs(
            path, LEVELS, thumbnail=BESIDE["label"], compression=33005, encode=jpeg2000, **BESIDE
        ),
    ),
    "ome": ("a.ome.tif", ome),
    "philips": ("a.tiff", lambda path: write_philips(path, LEVELS, **BESIDE)),
    "cog": ("a.tif", lambda path: write_cog(path, LEVELS, compression="lzw")),
    "dicom": ("level0.dcm", lambda path: DicomWriter(path.parent).write_levels(LEVELS)),
    "deep-zoom": ("a.dzi", deep_zoom),
    "png": ("a.png", png),
}


@pytest.fixture(scope="module", params=FORMATS)
def slide(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SlideReader]:
    name, write = FORMATS[request.param]
    path = write(tmp_path_factory.mktemp(request.param) / name)
    with open_slide(path, mpp=0.5) as opened:
        yield opened


def cut_out(picture: np.ndarray, column: int, row: int, width: int, height: int) -> np.ndarray:
    """A rectangle of a picture that lies on an endless white table."""
    table = np.full((height, width, 3), 255, np.uint8)
    for i, j in product(range(height), range(width)):
        if 0 <= row + i < picture.shape[0] and 0 <= column + j < picture.shape[1]:
            table[i, j] = picture[row + i, column + j]
    return table


@settings(max_examples=40, deadline=None)
@given(
    x=st.integers(-80, WIDTH + 80),
    y=st.integers(-80, HEIGHT + 80),
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    level=st.integers(0, 1),
)
def test_any_rectangle_is_that_of_the_picture(
    slide: SlideReader, x: int, y: int, width: int, height: int, level: int
) -> None:
    level = min(level, len(slide.levels) - 1)
    column, row = (int(np.floor(v / 2**level + 0.5)) for v in (x, y))
    expected = cut_out(LEVELS[level], column, row, width, height)
    assert np.array_equal(slide.read_region(x, y, width, height, level=level), expected)


def test_its_levels(slide: SlideReader) -> None:
    sizes = [(level.width, level.height, level.downsample) for level in slide.levels[:2]]
    assert sizes == [(WIDTH, HEIGHT, 1), (WIDTH // 2, HEIGHT // 2, 2)][: len(sizes)]
    assert len(sizes) == (1 if slide.reader == "image" else 2)
    native = slide.native_tile(0)
    assert native is None or min(native) >= 1


def test_many_threads_read_what_one_does(slide: SlideReader) -> None:
    draw = np.random.default_rng(3)
    places = [(int(draw.integers(0, 300)), int(draw.integers(0, 200))) for _ in range(40)]
    with ThreadPoolExecutor(6) as pool:
        for place, pixels in zip(
            places, pool.map(lambda p: slide.read_region(*p, 80, 50), places), strict=True
        ):
            assert np.array_equal(pixels, cut_out(LEVELS[0], *place, 80, 50))


def test_what_it_gives_is_the_callers_to_write(slide: SlideReader) -> None:
    pixels = slide.read_region(0, 0, 64, 64)
    pixels[...] = 0
    assert np.array_equal(slide.read_region(0, 0, 64, 64), LEVELS[0][:64, :64])


def test_after_close_it_refuses(slide: SlideReader) -> None:
    with open_slide(slide.path, mpp=0.5) as again:
        again.read_region(0, 0, 8, 8)
    for read in (lambda: again.read_region(0, 0, 8, 8), lambda: again.read_associated("label")):
        with pytest.raises(SlideError, match="has been closed"):
            read()
