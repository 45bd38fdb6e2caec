from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_slides import pyramid, tissue_like, write_tiff

from anlage.slides.reader import open_slide
from anlage.slides.rectangle import Rectangle
from reference.slow_reader import reduced, slow_region

SIZE = (701, 533)  # no tile divides them
CORNERS = st.tuples(st.integers(-60, 760), st.integers(-60, 590))
EDGES = st.integers(1, 30)
ENCODINGS: dict[str, dict[str, Any]] = {
    "tiles": {},
    "strips": {"tile": None, "rowsperstrip": 16, "compression": "deflate"},
    "jpeg": {"compression": "jpeg", "tile": (64, 112)},
    "jpeg-strips": {"compression": "jpeg", "tile": None, "rowsperstrip": 16},
    "webp": {"compression": "webp", "compressionargs": {"lossless": True}},
    "jpegxl": {"compression": "jpegxl", "compressionargs": {"lossless": True}},
}


@pytest.fixture(scope="module", params=ENCODINGS)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[np.ndarray]]:
    """A slide of three levels, and what tifffile makes of each."""
    path = tmp_path_factory.mktemp("made") / f"{request.param}.tiff"
    smooth = [cv2.GaussianBlur(level, (0, 0), 2) for level in pyramid(*SIZE)]
    write_tiff(path, smooth, **ENCODINGS[request.param])
    with tifffile.TiffFile(path) as tiff:
        return path, [level.asarray() for level in tiff.series[0].levels]


@settings(max_examples=25, deadline=None)
@given(corner=CORNERS, width=EDGES, height=EDGES, level=st.integers(0, 2))
def test_any_region_is_the_slow_readers(
    made: tuple[Path, list[np.ndarray]],
    corner: tuple[int, int],
    width: int,
    height: int,
    level: int,
) -> None:
    path, levels = made
    with open_slide(path) as slide:
        assert slide.reader == "tiled-tiff"
        got = slide.read_region(*corner, width, height, level=level)
    expected = slow_region(levels[level], 2**level, corner, width=width, height=height)
    assert np.abs(got.astype(int) - expected).max() <= 1  # two builds of one decoder


@settings(max_examples=25, deadline=None)
@given(corner=CORNERS, width=EDGES, height=EDGES, level=st.integers(0, 2))
def test_any_reduced_region_is_the_mean(
    made: tuple[Path, list[np.ndarray]],
    corner: tuple[int, int],
    width: int,
    height: int,
    level: int,
) -> None:
    path, levels = made
    with open_slide(path) as slide:
        for reduce in slide.reductions(level):
            got = slide.read_region(*corner, width, height, level=level, reduce=reduce)
            small = reduced(levels[level], reduce)
            expected = slow_region(small, 2**level * reduce, corner, width=width, height=height)
            assert got.shape == expected.shape
            assert (got[(expected == 255).all(-1)] == 255).all()  # beyond the slide
            assert np.abs(got - expected).mean() < 3
            assert np.abs(got - expected).max() < 24


@pytest.mark.parametrize(
    ("encoding", "reductions"),
    [("tiles", (1,)), ("jpeg", (1, 2, 4, 8)), ("jpeg-strips", (1,)), ("webp", (1,))],
)
def test_reductions_need_jpeg_and_edges_that_divide(
    tmp_path: Path, encoding: str, reductions: tuple[int, ...]
) -> None:
    path = write_tiff(tmp_path / "slide.tiff", pyramid(701, 533), **ENCODINGS[encoding])
    with open_slide(path) as slide:
        assert slide.reductions(0) == reductions


def test_strips_reduce_where_their_rows_and_the_width_divide(tmp_path: Path) -> None:
    picture = cv2.GaussianBlur(tissue_like(704, 539), (0, 0), 2)
    path = write_tiff(tmp_path / "slide.tiff", [picture], **ENCODINGS["jpeg-strips"])
    with open_slide(path) as slide:
        assert slide.native_tile(0) == (704, 16)
        assert slide.reductions(0) == (1, 2)
        got = slide.read_region(0, 0, 352, 269, reduce=2)
        full = slide.read_region(0, 0, 704, 539)
    assert np.abs(got - reduced(full, 2)).max() < 8  # to the last, shorter strip


@settings(max_examples=25, deadline=None)
@given(
    places=st.lists(
        st.builds(Rectangle, st.integers(-40, 740), st.integers(-40, 560), EDGES, EDGES),
        max_size=6,
    ),
    reduce=st.sampled_from([1, 2, 8]),
)
def test_regions_read_together_are_those_read_alone(
    made: tuple[Path, list[np.ndarray]], places: list[Rectangle], reduce: int
) -> None:
    path, _ = made
    with open_slide(path) as slide:
        if reduce not in slide.reductions(0):
            return
        found = dict(slide.start_regions(places, reduce=reduce)())
        assert sorted(found) == list(range(len(places)))
        for number, (left, top, width, height) in enumerate(places):
            alone = slide.read_region(left * reduce, top * reduce, width, height, reduce=reduce)
            assert np.array_equal(found[number], alone)


def test_a_reduction_that_is_none_is_refused(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "slide.tiff", pyramid(300, 200), **ENCODINGS["jpeg"])
    with open_slide(path) as slide:
        for reduce in (0, 3, 16):
            with pytest.raises(ValueError, match=f"level 0, which are 1, 2, 4, 8; got {reduce}"):
                slide.read_region(0, 0, 8, 8, reduce=reduce)
        with pytest.raises(ValueError, match="needs width and height >= 1; got 0 x 4"):
            slide.start_regions([Rectangle(0, 0, 0, 4)])
