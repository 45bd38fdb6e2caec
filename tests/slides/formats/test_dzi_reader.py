from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from openslide import ImageSlide
from openslide.deepzoom import DeepZoomGenerator
from PIL import Image
from synthetic_slides import tissue_like

from anlage.errors import ResolutionError, SlideError
from anlage.slides.formats.dzi_reader import DeepZoomReader
from anlage.slides.reader import SlideReader, UnknownFormatError, open_slide

WIDTH, HEIGHT = 601, 347


def write_deep_zoom(
    path: Path, picture: np.ndarray, *, ending: str = "png", tile_px: int = 100, overlap: int = 7
) -> Path:
    """A pyramid by OpenSlide's own writer of Deep Zoom."""
    made = DeepZoomGenerator(ImageSlide(Image.fromarray(picture)), tile_px, overlap)
    for level, (columns, rows) in enumerate(made.level_tiles):
        folder = path.parent / f"{path.stem}_files" / str(level)
        folder.mkdir(parents=True)
        for column in range(columns):
            for row in range(rows):
                tile = made.get_tile(level, (column, row))
                tile.save(folder / f"{column}_{row}.{ending}")
    path.write_text(made.get_dzi(ending))
    return path


def whole(slide: SlideReader, level: int = 0) -> np.ndarray:
    shape = slide.levels[level]
    return slide.read_region(0, 0, shape.width, shape.height, level=level)


@pytest.fixture
def picture() -> np.ndarray:
    return tissue_like(WIDTH, HEIGHT)


@pytest.mark.parametrize("overlap", [0, 1, 7])
def test_the_picture_it_was_made_of(tmp_path: Path, picture: np.ndarray, overlap: int) -> None:
    path = write_deep_zoom(tmp_path / "a.b.dzi", picture, overlap=overlap)
    with open_slide(path, mpp=0.5) as slide:
        assert (slide.reader, slide.vendor, slide.mpp) == ("deep-zoom", "deep-zoom", 0.5)
        assert [(level.width, level.height, level.downsample) for level in slide.levels] == [
            (601, 347, 1),
            (301, 174, 2),
            (151, 87, 4),
            (76, 44, 8),  # the first that one tile holds
        ]
        assert slide.native_tile(0) == (100, 100)
        assert slide.size == (WIDTH, HEIGHT)
        assert np.array_equal(whole(slide), picture)
        for x, y in [(95, 190), (150, 99), (-20, 300), (560, 330)]:
            expected = np.full((60, 80, 3), 255, np.uint8)
            inside = picture[max(y, 0) : y + 60, max(x, 0) : x + 80]
            top, left = max(-y, 0), max(-x, 0)
            expected[top : top + len(inside), left : left + inside.shape[1]] = inside
            assert np.array_equal(slide.read_region(x, y, 80, 60), expected)


def test_its_lower_levels_show_the_same_places(tmp_path: Path, picture: np.ndarray) -> None:
    path = write_deep_zoom(tmp_path / "a.dzi", picture)
    with DeepZoomReader(str(path)) as slide:
        for i, level in enumerate(slide.levels):
            size = (level.width, level.height)
            expected = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))
            assert np.abs(whole(slide, i).astype(int) - expected).mean() < 4
        tile = np.asarray(Image.open(tmp_path / "a_files/9/3_0.png"))
        assert tile.shape == (107, 7, 3)  # begins at (293, 0) and lacks its last column
        got = slide.read_region(2 * 300, 0, 1, 100, level=1)
        assert np.array_equal(got, tile[:100, 6:])


@pytest.mark.parametrize("ending", ["jpeg", "jpg"])
def test_jpeg_tiles_are_those_stored(tmp_path: Path, picture: np.ndarray, ending: str) -> None:
    path = write_deep_zoom(tmp_path / "a.dzi", picture, ending=ending)
    tile = np.asarray(Image.open(tmp_path / f"a_files/10/2_1.{ending}"))  # begins at (193, 93)
    with open_slide(path) as slide:
        got = slide.read_region(200, 100, 100, 100)
        assert np.abs(got.astype(int) - tile[7:107, 7:107]).max() <= 1
        assert np.abs(whole(slide).astype(int) - picture).mean() < 8


def test_the_real_one(shared_data: Path) -> None:
    folder = shared_data / "slides" / "dzi"
    with open_slide(folder / "glycogenstorage_PAS.dzi") as slide:
        sizes = [(level.width, level.height) for level in slide.levels]
        assert sizes == [(1841, 1577), (921, 789), (461, 395), (231, 198)]
        assert slide.resolution is None
        with pytest.raises(ResolutionError, match="mpp="):
            slide.mpp  # noqa: B018
        tile = Image.open(folder / "glycogenstorage_PAS_files" / "11" / "3_2.jpeg")
        got = slide.read_region(3 * 254, 2 * 254, 254, 254)
        assert np.abs(got.astype(int) - np.asarray(tile)[1:255, 1:255]).max() <= 1
        # A seam of wrong alignment would differ; the rims are what the neighbours hold.
        beside = slide.read_region(3 * 254 - 1, 2 * 254 - 1, 256, 256).astype(int)
        assert np.abs(beside - np.asarray(tile)).mean() < 2


@pytest.mark.parametrize(
    ("ending", "damage", "why"),
    [
        ("png", "missing", "No such file"),
        ("png", "empty", "neither PNG nor JPEG"),
        ("png", "zeros", "cannot be decoded"),
        ("png", "small", "needs 114 x 114 pixels; got 5 x 5"),
        ("jpeg", "missing", "No such file"),
        ("jpeg", "empty", "neither PNG nor JPEG"),
        ("jpeg", "zeros", "cannot be decoded"),
        ("jpeg", "small", "needs 114 x 114 pixels; got 5 x 5"),
    ],
)
def test_a_bad_tile_is_named_and_costs_only_itself(
    tmp_path: Path, picture: np.ndarray, ending: str, damage: str, why: str
) -> None:
    path = write_deep_zoom(tmp_path / "a.dzi", picture, ending=ending)
    tile = tmp_path / "a_files" / "10" / f"2_1.{ending}"
    data = tile.read_bytes()
    if damage == "missing":
        tile.unlink()
    elif damage == "small":
        Image.new("RGB", (5, 5)).save(tile)
    else:
        cut = len(data) // 2
        tile.write_bytes(b"" if damage == "empty" else data[:cut] + bytes(len(data) - cut))
    with open_slide(path) as slide:
        place = rf"a\.dzi: level 0, tile row 1, column 2 \(file 10/2_1\.{ending}\)"
        with pytest.raises(SlideError, match=f"{place} .*{why}"):
            slide.read_region(250, 150, 20, 20)
        slide.read_region(300, 100, 100, 100)


DESCRIPTION = (
    '<Image xmlns="http://schemas.microsoft.com/deepzoom/2008" TileSize="{tile}" '
    'Overlap="{overlap}" Format="{format}"><Size Width="{width}" Height="9"/></Image>'
)
GOOD = {"tile": "8", "overlap": "1", "format": "png", "width": "9"}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"tile": "0"}, "needs a TileSize from 1 to 8192; got '0'"),
        ({"tile": "8.5"}, "needs a TileSize"),
        ({"tile": "100000000"}, "needs a TileSize"),
        ({"overlap": "-1"}, "needs a Overlap from 0"),
        ({"width": "99999999999999"}, "needs a Width"),
        ({"width": "9999999999"}, "needs a Width"),
        ({"format": "tiff"}, "needs JPEG or PNG tiles; got 'tiff'"),
    ],
)
def test_a_senseless_description(tmp_path: Path, change: dict[str, str], why: str) -> None:
    path = tmp_path / "a.dzi"
    path.write_text(DESCRIPTION.format(**GOOD | change))
    with pytest.raises(SlideError, match=rf"a\.dzi: .*{why}"):
        open_slide(path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("<Image", "its XML cannot be parsed"),
        ("<Image/>", "holds Image, which is no Deep Zoom picture"),
        (
            '<!DOCTYPE x [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><Image>&b;</Image>',
            "without a DOCTYPE",
        ),
        (" " * 70_000, "of 70000 bytes"),
    ],
)
def test_no_description(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "a.dzi").write_text(text)
    with pytest.raises(SlideError, match=why):
        open_slide(tmp_path / "a.dzi")


def test_another_name_is_left_to_others(tmp_path: Path, picture: np.ndarray) -> None:
    path = write_deep_zoom(tmp_path / "a.dzi", picture)
    with pytest.raises(UnknownFormatError, match="not named .dzi"):
        DeepZoomReader(str(path.rename(tmp_path / "a.xml")))


def test_after_close_it_refuses(tmp_path: Path, picture: np.ndarray) -> None:
    slide = DeepZoomReader(str(write_deep_zoom(tmp_path / "a.dzi", picture)))
    slide.close()
    with pytest.raises(SlideError, match="has been closed"):
        whole(slide)
    with pytest.raises(SlideError, match="has been closed"):
        slide.read_associated("label")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_refused_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    text = (
        f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE Image [<!ENTITY size "128">]>'
        '<Image xmlns="http://schemas.microsoft.com/deepzoom/2008" Format="png" Overlap="0" '
        'TileSize="&size;"><Size Width="100" Height="80"/></Image>'
    )
    (tmp_path / "a.dzi").write_bytes(text.encode(encoding))
    with pytest.raises(SlideError, match="needs a description without a DOCTYPE"):
        DeepZoomReader(str(tmp_path / "a.dzi"))
