from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from faulty_server import FaultyServer, serve
from synthetic_slides import pyramid, write_tiff

from anlage.slides.formats import tiff_sidecar
from anlage.slides.formats.tiff_index import TiffIndex, read_tiff_index
from anlage.slides.formats.tiff_sidecar import (
    DIGEST_BYTES,
    Sidecar,
    drop_sidecar,
    load_sidecar,
    remove_oldest,
    save_sidecar,
)
from anlage.slides.levels import TileWindow
from anlage.slides.reader import SlideReader, open_slide
from anlage.slides.rectangle import Rectangle
from anlage.slides.regions import read_tiles
from anlage.slides.storage.byte_source import SlideChangedError
from anlage.slides.storage.file_bytes import FileBytes

URL = "s3://bucket/a.svs"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ANLAGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path: Path) -> TiffIndex:
    path = write_tiff(
        tmp_path / "a.tiff", pyramid(700, 500), compression="jpeg", iccprofile=bytes(range(200))
    )
    return read_tiff_index(FileBytes(str(path)))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultyServer]:
    root = tmp_path / "root"
    root.mkdir()
    write_tiff(root / "a.tiff", pyramid(700, 500), compression="jpeg")
    with serve(root) as server:
        yield server


def everything(slide: SlideReader) -> np.ndarray:
    return slide.read_region(0, 0, slide.size.width, slide.size.height)


def sidecars(cache: Path) -> list[Path]:
    return sorted((cache / "indexes").iterdir())


def test_what_is_kept_is_what_is_loaded(index: TiffIndex) -> None:
    save_sidecar(URL, Sidecar("v1", 1234, index))
    loaded = load_sidecar(URL)
    assert loaded is not None
    assert (loaded.version, loaded.size) == ("v1", 1234)
    for kept, again in zip(index.levels, loaded.index.levels, strict=True):
        assert (kept.name, kept.size, kept.tile, kept.codec) == (
            *(again.name, again.size, again.tile, again.codec),
        )
        assert again.offsets.dtype == np.int64
        np.testing.assert_array_equal(kept.offsets, again.offsets)
        np.testing.assert_array_equal(kept.counts, again.counts)
    assert loaded.index.icc_profile == bytes(range(200)) == index.icc_profile
    assert (loaded.index.stated, loaded.index.vendor) == (index.stated, index.vendor)
    assert load_sidecar("s3://bucket/b.svs") is None


def test_opening_again_asks_for_nothing(server: FaultyServer) -> None:
    with open_slide(server.url("a.tiff")) as slide:
        expected = everything(slide)
    assert len(server.asked) > 0
    server.forget()
    with open_slide(server.url("a.tiff")) as slide:
        assert not server.asked
        np.testing.assert_array_equal(everything(slide), expected)
    assert all(first is not None for _, _, first, _ in server.asked)


def test_opening_asks_for_little(server: FaultyServer) -> None:
    with open_slide(server.url("a.tiff")):
        assert len(server.asked) <= 3
        assert server.n_bytes <= 3 * 2**17


@pytest.mark.parametrize("place", [0, DIGEST_BYTES + 20, -1])
def test_a_damaged_sidecar_is_made_again(
    server: FaultyServer, cache: Path, caplog: pytest.LogCaptureFixture, place: int
) -> None:
    open_slide(server.url("a.tiff")).close()
    (path,) = sidecars(cache)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING), open_slide(server.url("a.tiff")) as slide:
        everything(slide)
    assert "is damaged" in caplog.text
    assert load_sidecar(server.url("a.tiff")) is not None


@pytest.mark.parametrize("n_bytes", [0, 7, 40, 500])
def test_a_cut_sidecar(index: TiffIndex, cache: Path, n_bytes: int) -> None:
    save_sidecar(URL, Sidecar("v1", 1234, index))
    (path,) = sidecars(cache)
    path.write_bytes(path.read_bytes()[:n_bytes])
    assert load_sidecar(URL) is None


def test_a_sidecar_of_other_code(
    index: TiffIndex, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_sidecar(URL, Sidecar("v1", 1234, index))
    monkeypatch.setattr("anlage.slides.formats.tiff_sidecar._layout", lambda: "tiff-sidecar/2")
    assert load_sidecar(URL) is None
    assert len(sidecars(cache)) == 1


def test_a_slide_replaced_since_it_was_opened_last(server: FaultyServer) -> None:
    open_slide(server.url("a.tiff")).close()
    write_tiff(server.root / "a.tiff", [255 - level for level in pyramid(700, 500)])
    with open_slide(server.root / "a.tiff") as slide:
        expected = everything(slide)
    with open_slide(server.url("a.tiff")) as slide:
        np.testing.assert_array_equal(everything(slide), expected)
        np.testing.assert_array_equal(everything(slide), expected)


def test_a_slide_replaced_before_its_tiles_are_read(server: FaultyServer) -> None:
    open_slide(server.url("a.tiff")).close()
    write_tiff(server.root / "a.tiff", [255 - level for level in pyramid(700, 500)])
    windows = [TileWindow(x, 200, 224, 0.5) for x in (0, 130, 400)]
    with open_slide(server.root / "a.tiff") as here, open_slide(server.url("a.tiff")) as there:
        for expected, found in zip(
            read_tiles(here, windows), read_tiles(there, windows), strict=True
        ):
            assert isinstance(found, np.ndarray)
            np.testing.assert_array_equal(found, expected)


def test_a_slide_replaced_by_one_of_another_size(server: FaultyServer) -> None:
    open_slide(server.url("a.tiff")).close()
    write_tiff(server.root / "a.tiff", pyramid(500, 300))
    with (
        open_slide(server.url("a.tiff")) as slide,
        pytest.raises(SlideChangedError, match="has changed since it was last opened. Open it"),
    ):
        slide.read_region(0, 0, 100, 100)
    with open_slide(server.url("a.tiff")) as slide:
        assert slide.size == (500, 300)


def test_tiles_of_a_slide_replaced_by_one_of_another_size(server: FaultyServer) -> None:
    open_slide(server.url("a.tiff")).close()
    write_tiff(server.root / "a.tiff", pyramid(500, 300))
    windows = [TileWindow(x, 0, 100, 0.5) for x in (0, 130, 400)]
    with open_slide(server.url("a.tiff")) as slide:
        for _ in range(2):
            found = read_tiles(slide, windows)
            assert [type(tile) for tile in found] == [SlideChangedError] * 3


def test_a_slide_that_is_not_the_catalogues(server: FaultyServer) -> None:
    with open_slide(server.url("a.tiff")) as slide:
        version = slide.version
    size = (server.root / "a.tiff").stat().st_size
    server.forget()
    with open_slide(server.url("a.tiff"), version=version, size=size) as slide:
        assert not server.asked
        write_tiff(server.root / "a.tiff", pyramid(700, 500))
        with pytest.raises(SlideChangedError, match="opened or indexed"):
            everything(slide)
        with pytest.raises(SlideChangedError, match="opened or indexed"):
            everything(slide)
    drop_sidecar(server.url("a.tiff"))
    with (
        pytest.raises(SlideChangedError, match="opened or indexed"),
        open_slide(server.url("a.tiff"), version=version, size=size) as slide,
    ):
        everything(slide)


def test_many_threads_open_one_slide(server: FaultyServer) -> None:
    def read(_: int) -> np.ndarray:
        with open_slide(server.url("a.tiff")) as slide:
            return everything(slide)

    with open_slide(server.root / "a.tiff") as slide, ThreadPoolExecutor(8) as pool:
        expected = everything(slide)
        assert all(np.array_equal(found, expected) for found in pool.map(read, range(16)))
    assert load_sidecar(server.url("a.tiff")) is not None


def test_a_cache_that_cannot_be_written(
    server: FaultyServer, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING), open_slide(server.url("a.tiff")) as slide:
        everything(slide)
    assert "cannot be written" in caplog.text


def test_the_oldest_go_first(cache: Path) -> None:
    cache.mkdir()
    for i in range(5):
        path = cache / f"{i}.sidecar"
        path.write_bytes(bytes(100))
        os.utime(path, (1000 - i, 1000 - i))
    remove_oldest(cache, max_bytes=250)
    assert sorted(path.name for path in cache.iterdir()) == ["0.sidecar", "1.sidecar"]


@pytest.mark.parametrize("how", [{"mpp": 1.0}, {"iccprofile": bytes(200)}])
def test_a_slide_replaced_by_one_that_says_something_else(
    server: FaultyServer, how: dict[str, Any]
) -> None:
    """Its resolution and its colours are what the tiles asked for were chosen by."""
    open_slide(server.url("a.tiff")).close()
    write_tiff(server.root / "a.tiff", pyramid(700, 500), **how)
    with open_slide(server.url("a.tiff")) as slide:
        assert slide.mpp == pytest.approx(0.5)
        with pytest.raises(SlideChangedError, match="has changed since it was last opened. Open"):
            slide.read_region(0, 0, 100, 100)
        (tile,) = read_tiles(slide, [TileWindow(0, 0, 100, 0.5)])
        assert isinstance(tile, SlideChangedError)
    with open_slide(server.url("a.tiff")) as slide:
        assert slide.mpp == pytest.approx(how.get("mpp", 0.5))
        assert slide.icc_profile == how.get("iccprofile")


def test_a_slide_replaced_by_one_that_cannot_be_reduced(server: FaultyServer) -> None:
    url, place = server.url("a.tiff"), [Rectangle(0, 0, 60, 60)]
    open_slide(url).close()
    with open_slide(url) as slide, open_slide(url) as another:
        write_tiff(server.root / "a.tiff", pyramid(700, 500))
        with pytest.raises(SlideChangedError, match="has changed since it was last opened. Open"):
            slide.read_region(0, 0, 100, 100, reduce=4)
        ((_, outcome),) = another.start_regions(place, reduce=4)()
        assert isinstance(outcome, SlideChangedError)
        with pytest.raises(SlideChangedError, match="has changed since it was last opened. Open"):
            another.start_regions(place, reduce=4)
        np.testing.assert_array_equal(everything(another), pyramid(700, 500)[0])


def test_a_slide_replaced_while_the_cache_cannot_be_written(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    open_slide(server.url("a.tiff")).close()
    write_tiff(server.root / "a.tiff", [255 - level for level in pyramid(700, 500)])
    with open_slide(server.root / "a.tiff") as slide:
        expected = everything(slide)
    monkeypatch.setattr(Path, "unlink", refuse)
    monkeypatch.setattr(tiff_sidecar, "replace_whole", refuse)
    with caplog.at_level(logging.WARNING), open_slide(server.url("a.tiff")) as slide:
        np.testing.assert_array_equal(everything(slide), expected)
    assert "cannot be removed (Permission denied)" in caplog.text


@pytest.mark.parametrize("is_changed", [False, True])
def test_a_slide_of_which_only_tiles_that_were_left_out_are_read(
    server: FaultyServer, is_changed: bool
) -> None:
    """No byte is asked for that would tell whether they are still left out."""
    path, url = server.root / "a.tiff", server.url("a.tiff")
    write_tiff(path, pyramid(700, 500))
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        for name in ("TileOffsets", "TileByteCounts"):
            tag = tiff.pages.first.tags[name]
            tag.overwrite([0] * tag.count)
    open_slide(url).close()
    if is_changed:
        write_tiff(path, pyramid(700, 500))
    server.forget()
    with open_slide(url) as slide, open_slide(url) as another:
        expected = pyramid(700, 500)[0][:64, :112] if is_changed else np.full((64, 112, 3), 255)
        np.testing.assert_array_equal(slide.read_region(0, 0, 112, 64), expected)
        ((_, found),) = another.start_regions([Rectangle(0, 0, 112, 64)])()
        np.testing.assert_array_equal(found, expected)
        n_asked = len(server.asked)
        if not is_changed:
            assert n_asked == 2
            slide.read_region(0, 0, 112, 64)
            assert len(server.asked) == n_asked
