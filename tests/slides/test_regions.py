from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from icc_profiles import WIDE_TO_XYZ, matrix_profile
from synthetic_slides import ArraySlide, overwrite_tile, pyramid, tissue_like, write_tiff

from anlage.errors import ResolutionError, SlideError
from anlage.geometry import Size
from anlage.slides import shared_reads
from anlage.slides.colour import srgb_converter
from anlage.slides.formats import tile_parts
from anlage.slides.formats.openslide_reader import OpenSlideReader
from anlage.slides.formats.tiff_reader import TiffReader
from anlage.slides.levels import Decode, TileWindow, read_tile
from anlage.slides.reader import SlideReader, open_slide
from anlage.slides.regions import read_tiles, start_tiles

JPEG = {"compression": "jpeg", "photometric": "ycbcr", "subsampling": (2, 2)}
MPP = 0.5  # of level 0 of the made slides


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("regions") / "made.tiff"
    return write_tiff(path, pyramid(1000, 720, n_levels=2), **JPEG)


def alone(slide: SlideReader, window: TileWindow, decode: Decode = "scaled") -> np.ndarray:
    return read_tile(
        slide, window.x, window.y, size_px=window.size_px, mpp=window.mpp, decode=decode
    )


WINDOWS = st.lists(
    st.builds(
        TileWindow,
        x=st.integers(-60, 1040),
        y=st.integers(-60, 760),
        size_px=st.integers(1, 70),
        mpp=st.just(0.0),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=40, deadline=None)
@given(
    windows=WINDOWS,
    mpp=st.floats(0.4951, 8.5) | st.sampled_from([0.5, 1.0, 1.96, 2.0, 4.0, 8.0]),
    decode=st.sampled_from(["scaled", "full"]),
    kind=st.sampled_from([TiffReader, OpenSlideReader]),
)
def test_each_tile_is_the_one_read_alone(
    made: Path, windows: list[TileWindow], mpp: float, decode: Decode, kind: type[TiffReader]
) -> None:
    windows = [TileWindow(w.x, w.y, w.size_px, mpp) for w in windows]
    with kind(str(made)) as slide:
        for window, tile in zip(windows, read_tiles(slide, windows, decode=decode), strict=True):
            assert np.array_equal(tile, alone(slide, window, decode))


def test_every_native_tile_is_decoded_once(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    original = tile_parts.TiledPicture.decode

    def counted(picture: object, index: int, *rest: object, **how: object) -> np.ndarray:
        decoded.append(index)
        return original(picture, index, *rest, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(tile_parts.TiledPicture, "decode", counted)
    windows = [TileWindow(x, y, 64, 1.0) for x in (0, 40, 90) for y in (0, 30)]
    with TiffReader(str(made)) as slide:
        read_tiles(slide, windows, decode="full")
    assert len(decoded) == len(set(decoded)) > 0


def test_several_magnifications_come_from_the_finest_reduction(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "one_level.tiff", pyramid(1000, 720, n_levels=1), **JPEG)
    windows = [TileWindow(200, 150, 32, mpp) for mpp in (1.0, 2.0, 4.0)]
    with TiffReader(str(path)) as slide:
        tiles = read_tiles(slide, windows)
        assert np.array_equal(tiles[0], alone(slide, windows[0]))
        for window, tile in zip(windows, tiles, strict=True):
            # The others are averaged from pixels at 1.0, so they show what each alone shows.
            assert np.abs(tile.astype(int) - alone(slide, window, "full")).mean() < 1.5


@pytest.mark.parametrize("kind", [TiffReader, OpenSlideReader])
def test_a_damaged_native_tile_costs_the_windows_that_touch_it(
    kind: type[TiffReader], tmp_path: Path
) -> None:
    path = write_tiff(tmp_path / "slide.tiff", pyramid(1000, 720, n_levels=1), **JPEG)
    windows = [TileWindow(x, 10, 60, MPP) for x in (0, 100, 120, 150, 230, 400)]
    with kind(str(path)) as slide:
        before = read_tiles(slide, windows)
    overwrite_tile(path, page=0, tile=1, data=None)  # columns 112 to 223
    with kind(str(path)) as slide:
        after = read_tiles(slide, windows)
        assert np.array_equal(slide.read_region(400, 10, 60, 60), before[5])
    is_damaged = [isinstance(tile, SlideError) for tile in after]
    assert is_damaged == [False, True, True, True, False, False]
    assert "level 0" in str(after[2])
    for tile, whole, damaged in zip(after, before, is_damaged, strict=True):
        assert damaged or np.array_equal(tile, whole)


def test_a_window_too_fine_is_refused_in_its_place(made: Path) -> None:
    windows = [TileWindow(0, 0, 16, 1.0), TileWindow(0, 0, 16, 0.25), TileWindow(5, 5, 16, 0.5)]
    with open_slide(made) as slide:
        tiles = read_tiles(slide, windows)
    assert [type(tile) for tile in tiles] == [np.ndarray, ResolutionError, np.ndarray]


def test_windows_beyond_the_slide_are_white(made: Path) -> None:
    with open_slide(made) as slide:
        tiles = read_tiles(slide, [TileWindow(5000, -900, 20, 1.0), TileWindow(990, 0, 20, 1.0)])
    assert (tiles[0] == 255).all()
    assert (tiles[1][:, 5:] == 255).all()
    assert not (tiles[1][:, :5] == 255).all()


def test_no_windows_give_no_tiles(made: Path) -> None:
    with open_slide(made) as slide:
        assert read_tiles(slide, []) == []


def test_tiles_share_no_memory(made: Path) -> None:
    """The room that native tiles are decoded into never shows in a result."""
    windows = [TileWindow(10, 10, 40, 1.0), TileWindow(12, 10, 40, 1.0)]
    with open_slide(made) as slide:
        first = read_tiles(slide, windows)
        kept = [tile.copy() for tile in first]
        assert not np.shares_memory(*first)
        region = slide.read_region(0, 0, 100, 60)
        copy = region.copy()
        read_tiles(slide, [TileWindow(300, 300, 40, 1.0)])
        assert all(np.array_equal(a, b) for a, b in zip(first, kept, strict=True))
        assert np.array_equal(region, copy)


def test_a_closed_slide_is_refused(made: Path) -> None:
    with open_slide(made) as slide:
        pass
    with pytest.raises(SlideError, match="has been closed"):
        start_tiles(slide, [TileWindow(0, 0, 16, 1.0)])


def test_an_impossible_window_is_refused(made: Path) -> None:
    with open_slide(made) as slide:
        with pytest.raises(ValueError, match="size_px >= 1 and mpp > 0"):
            read_tiles(slide, [TileWindow(0, 0, 0, 1.0)])
        with pytest.raises(ValueError, match="decode to be one of scaled, full; got 'half'"):
            read_tiles(slide, [TileWindow(0, 0, 8, 1.0)], decode="half")  # type: ignore[arg-type]


class CountedSlide(ArraySlide):
    """Notes what is read of it, and is damaged at one pixel."""

    def __init__(self, pixels: np.ndarray, *, damaged: tuple[int, int]) -> None:
        super().__init__([pixels], mpp=MPP)
        self.damaged, self.read_px = damaged, []

    def _read_inside(self, level: int, left: int, top: int, size: Size) -> np.ndarray:
        self.read_px.append(size.width * size.height)
        x, y = self.damaged
        if left <= x < left + size.width and top <= y < top + size.height:
            raise SlideError(self.path, "is damaged here.")
        return super()._read_inside(level, left, top, size)


def test_other_readers_read_overlapping_windows_once() -> None:
    slide = CountedSlide(tissue_like(400, 300), damaged=(-1, -1))
    windows = [TileWindow(x, y, 100, MPP) for x in (0, 20, 40) for y in (0, 30)]
    tiles = read_tiles(slide, windows)
    assert slide.read_px == [140 * 130]
    for window, tile in zip(windows, tiles, strict=True):
        assert np.array_equal(tile, alone(slide, window))
        tile[:] = 0  # the caller's own


def test_far_apart_windows_are_read_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    slide = CountedSlide(tissue_like(400, 300), damaged=(-1, -1))
    read_tiles(slide, [TileWindow(0, 0, 50, MPP), TileWindow(300, 200, 50, MPP)])
    assert slide.read_px == [2500, 2500]
    monkeypatch.setattr(shared_reads, "MAX_TOGETHER_PX", 5000)
    slide.read_px.clear()
    read_tiles(slide, [TileWindow(0, 0, 80, MPP), TileWindow(4, 0, 80, MPP)])
    assert slide.read_px == [6400, 6400]


def test_damage_to_a_shared_read_is_found_window_by_window() -> None:
    slide = CountedSlide(tissue_like(400, 300), damaged=(10, 10))
    tiles = read_tiles(slide, [TileWindow(x, 0, 100, MPP) for x in (0, 20, 40)])
    assert [type(tile) for tile in tiles] == [SlideError, np.ndarray, np.ndarray]


def test_srgb_is_applied_to_each_tile(tmp_path: Path) -> None:
    profile = matrix_profile(WIDE_TO_XYZ, gamma=1.8)
    levels = pyramid(400, 300, n_levels=1)
    path = write_tiff(tmp_path / "icc.tiff", levels, iccprofile=profile, **JPEG)
    windows = [TileWindow(30, 40, 64, 1.0), TileWindow(90, 40, 64, 1.0)]
    convert = srgb_converter(profile)
    assert convert is not None
    with open_slide(path) as slide:
        stored, shown = read_tiles(slide, windows), read_tiles(slide, windows, colour="srgb")
    for before, after in zip(stored, shown, strict=True):
        assert np.array_equal(after, convert(before))
        assert not np.array_equal(after, before)
