from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from synthetic_slides import ArraySlide, pyramid, tissue_like, write_tiff

from anlage.errors import AnlageError, ResolutionError, SlideError
from anlage.geometry import Size
from anlage.samples import slides_folder
from anlage.slides.reader import levels_of, open_slide

SVS = slides_folder() / "CMU-1-Small-Region.svs"


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """Whatever the file, an answer comes soon."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < 60


def test_each_format_goes_to_its_reader(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.tiff", pyramid(200, 150, n_levels=1))
    Image.fromarray(tissue_like(40, 30)).save(tmp_path / "b.png")
    Image.fromarray(tissue_like(40, 30)).save(tmp_path / "c.jpg")
    readers = {path.name: open_slide(path).reader for path in sorted(tmp_path.iterdir())}
    assert readers == {"a.tiff": "tiled-tiff", "b.png": "image", "c.jpg": "image"}


def test_a_folder_of_slides_opens(shared_data: Path) -> None:
    expected = {".svs": "tiled-tiff", ".tiff": "tiled-tiff", ".tif": "tiled-tiff"}
    expected |= {".ndpi": "openslide"}
    for path in sorted((shared_data / "slides").glob("*/*.*")):
        if path.suffix in expected:
            with open_slide(path) as slide:
                assert slide.reader == expected[path.suffix], path


def test_a_path_may_be_text_or_a_path() -> None:
    with open_slide(str(SVS)) as as_text, open_slide(SVS) as as_path:
        assert as_text.path == as_path.path == str(SVS)


def test_a_missing_file() -> None:
    with pytest.raises(SlideError, match=r"nowhere\.svs: does not exist"):
        open_slide("nowhere.svs")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="is a folder"):
        open_slide(tmp_path)


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.svs").touch()
    with pytest.raises(SlideError, match="is empty"):
        open_slide(tmp_path / "a.svs")


@pytest.mark.parametrize("content", [b"not a slide at all\n" * 50, b"II*\0", b"II*\0\x08\0\0\0"])
@pytest.mark.parametrize("name", ["a.svs", "a.tiff", "a.ndpi", "a.mrxs", "a.dcm", "a.png"])
def test_something_else_under_a_slides_name(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SlideError) as refusal:
        open_slide(tmp_path / name)
    assert name in str(refusal.value)
    if not content.startswith(b"II*\0\x08"):  # that one is a damaged TIFF, to all of them
        for reader in ("tiled-tiff: ", "openslide: ", "image: "):
            assert reader in str(refusal.value)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95, 0.999])
@pytest.mark.parametrize("index_first", [True, False])
def test_a_cut_file_is_refused_when_it_is_opened(
    tmp_path: Path, share: float, index_first: bool
) -> None:
    path = tmp_path / "whole.tiff"
    if index_first:
        write_tiff(path, pyramid(600, 400, n_levels=1), compression="jpeg")
    else:
        path.write_bytes(SVS.read_bytes())
    cut = tmp_path / "cut.svs"
    data = path.read_bytes()
    cut.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(SlideError, match=r"cut\.svs"):
        open_slide(cut)


def test_bytes_turned_at_random_give_pixels_or_a_refusal(tmp_path: Path) -> None:
    """Whatever is damaged, in the index above all: no other exception, no crash, no hang."""
    whole = write_tiff(tmp_path / "a.tiff", pyramid(120, 90, n_levels=2), compression="jpeg")
    data = whole.read_bytes()
    draw = np.random.default_rng(5)
    path = tmp_path / "damaged.tiff"
    n_refused = 0
    for _ in range(60):
        damaged = bytearray(data)
        at = int(draw.integers(4, 400))
        damaged[at : at + 4] = draw.bytes(4)
        path.write_bytes(damaged)
        try:
            with open_slide(path) as slide:
                slide.read_region(0, 0, 64, 64)
                slide.resolution  # noqa: B018 - it must not raise
        except AnlageError:
            n_refused += 1
    assert n_refused > 5


def test_an_index_that_runs_in_a_circle(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tiff", pyramid(120, 90, n_levels=2), compression="jpeg")
    with tifffile.TiffFile(path) as tiff:
        first, second = tiff.pages[0], tiff.pages[1]
        link = second.offset + 2 + 12 * len(second.tags)
        first_offset = first.offset
    with path.open("r+b") as file:
        file.seek(link)
        file.write(first_offset.to_bytes(4, "little"))
    with pytest.raises(SlideError, match="runs in a circle"):
        open_slide(path)


def test_without_mpp_it_opens_and_mpp_says_what_to_do(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tiff", pyramid(64, 64, n_levels=1), mpp=None)
    with open_slide(path) as slide:
        assert slide.resolution is None
        for _ in range(2):
            with pytest.raises(ResolutionError, match=r"a\.tiff: .*`mpp` column .* pass mpp="):
                slide.mpp  # noqa: B018
    with open_slide(path, mpp=0.25) as slide:
        assert slide.mpp == 0.25


@pytest.mark.parametrize("mpp", [0.0, -1.0, float("nan")])
def test_an_absurd_override(mpp: float) -> None:
    with pytest.raises(ResolutionError, match="needs an mpp"):
        open_slide(SVS, mpp=mpp)


@pytest.mark.parametrize(
    ("sizes", "downsamples"),
    [
        ([(4443, 3567), (2221, 1783)], [1, 2]),  # cut
        ([(4443, 3567), (2222, 1784)], [1, 2]),  # padded
        ([(2055, 3494), (1027, 1747), (513, 873)], [1, 2, 4]),
        ([(46000, 32914), (11500, 8228), (2875, 2057)], [1, 4, 16]),
        ([(1000, 800), (400, 320)], [1, 2.5]),  # really not whole
        ([(50, 50)], [1]),
    ],
)
def test_downsamples(sizes: list[tuple[int, int]], downsamples: list[float]) -> None:
    levels = levels_of([Size(*size) for size in sizes])
    assert [level.downsample for level in levels] == pytest.approx(downsamples)


@given(
    width=st.integers(500, 200_000),
    height=st.integers(500, 200_000),
    factor=st.sampled_from([2, 3, 4, 8, 16]),
)
def test_a_whole_factor_is_found_again(width: int, height: int, factor: int) -> None:
    full, reduced = Size(width, height), Size(width // factor, height // factor)
    assert levels_of([full, reduced])[1].downsample == factor


def test_a_slide_is_not_opened_by_its_interface() -> None:
    with ArraySlide([tissue_like(20, 10)], mpp=1.0) as slide:
        assert slide.size == (20, 10)


def test_reading_needs_no_torch() -> None:
    code = (
        "import sys; from anlage.slides import reader, levels; "
        "from anlage.slides.formats import openslide_reader, tiff_reader, "
        "image_reader; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
