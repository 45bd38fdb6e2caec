"""Slides on a web server that misbehaves: equal pixels in the end, or an error that says why."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from faulty_server import Faults, FaultyServer, serve
from PIL import Image
from synthetic_slides import pyramid, write_tiff

from anlage.errors import AnlageError, SlideError
from anlage.samples import slides_folder
from anlage.slides.levels import TileWindow
from anlage.slides.reader import SlideReader, open_slide
from anlage.slides.regions import read_tiles
from anlage.slides.storage.byte_source import SlideChangedError

NEVER_S = 90  # only a hang takes as long


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    """A server for one slide, "a.tiff", and a cache of this test's own."""
    monkeypatch.setenv("ANLAGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ANLAGE_REMOTE_SECONDS", "20")
    root = tmp_path / "root"
    root.mkdir()
    write_tiff(root / "a.tiff", pyramid(700, 500), compression="jpeg")
    with serve(root) as server:
        yield server


def everything(slide: SlideReader) -> np.ndarray:
    return slide.read_region(0, 0, slide.size.width, slide.size.height)


def local(server: FaultyServer, name: str = "a.tiff") -> np.ndarray:
    with open_slide(server.root / name) as slide:
        return everything(slide)


def replace(server: FaultyServer, **how: object) -> None:
    """Put another slide in the place of the first."""
    (server.root / "a.tiff").unlink()
    write_tiff(server.root / "a.tiff", pyramid(700, 500)[:2], compression="jpeg", **how)


def test_pixels_are_those_of_the_file(server: FaultyServer) -> None:
    with open_slide(server.url("a.tiff")) as slide:
        assert slide.mpp == pytest.approx(0.5)
        np.testing.assert_array_equal(everything(slide), local(server))


def test_every_third_answer_is_dropped(server: FaultyServer) -> None:
    server.faults = Faults(drop_every=3)
    with open_slide(server.url("a.tiff")) as slide, ThreadPoolExecutor(4) as pool:
        corners = [(x, y) for x in range(0, 700, 100) for y in range(0, 500, 100)]
        found = pool.map(lambda at: slide.read_region(*at, 150, 150), corners)
        whole = np.pad(local(server), ((0, 150), (0, 150), (0, 0)), constant_values=255)
        for (x, y), pixels in zip(corners, found, strict=True):
            np.testing.assert_array_equal(pixels, whole[y : y + 150, x : x + 150])
    assert server.n_bodies >= 3


@pytest.mark.parametrize("statuses", [[503, 503], [429], [500, 502, 504], [408]])
def test_a_trouble_that_passes(server: FaultyServer, statuses: list[int]) -> None:
    with open_slide(server.url("a.tiff")) as slide:
        server.faults = Faults(statuses=list(statuses))
        np.testing.assert_array_equal(everything(slide), local(server))
    assert not server.faults.statuses


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "may not be read: the server answers 401 Unauthorized. Sign the address"),
        (403, "may not be read: the server answers 403 Forbidden. Sign the address"),
        (404, r"does not exist \(404\). Check the address"),
        (400, "cannot be read: the server answers 400 Bad Request"),
    ],
)
def test_a_trouble_that_stays(server: FaultyServer, status: int, said: str) -> None:
    server.faults = Faults(always=status)
    with pytest.raises(SlideError, match=f"http://.*/a.tiff: {said}"):
        open_slide(server.url("a.tiff"))
    assert len(server.asked) == 1


def test_a_server_that_fails_for_ever(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANLAGE_REMOTE_SECONDS", "2")
    server.faults = Faults(always=500)
    begun = time.monotonic()
    with pytest.raises(
        SlideError, match=r"answers 500 Internal.* Tried [2-9]\d* times in .* set ANLAGE"
    ):
        open_slide(server.url("a.tiff"))
    assert time.monotonic() - begun < NEVER_S
    assert len(server.asked) > 1


@pytest.mark.parametrize(
    "faults", [Faults(stalls=1000), Faults(latency_s=60), Faults(trickle_s=0.02)]
)
def test_a_server_slower_than_the_time_limit(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch, faults: Faults
) -> None:
    monkeypatch.setenv("ANLAGE_REMOTE_SECONDS", "2")
    server.faults = faults
    begun = time.monotonic()
    with pytest.raises(SlideError, match="no answer in time. Tried"):
        open_slide(server.url("a.tiff"))
    assert time.monotonic() - begun < NEVER_S


def test_a_host_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANLAGE_REMOTE_SECONDS", "1")
    with pytest.raises(SlideError, match="cannot connect. Tried"):
        open_slide("http://127.0.0.1:9/a.tiff")


def test_a_server_without_ranges(server: FaultyServer) -> None:
    server.faults = Faults(ignores_ranges=True)
    with pytest.raises(SlideError, match=r"does not send parts of files \(it ignores Range\)"):
        open_slide(server.url("a.tiff"))
    assert len(server.asked) == 1


def test_a_server_that_sends_another_length(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANLAGE_REMOTE_SECONDS", "1")
    with open_slide(server.url("a.tiff")) as slide:
        server.faults = Faults(short_by=3)
        with pytest.raises(SlideError, match=r"asked for bytes \d+\.\.\d+, got \d+\.\.\d+"):
            everything(slide)


def test_an_empty_object(server: FaultyServer) -> None:
    (server.root / "b.tiff").touch()
    with pytest.raises(SlideError, match="is empty or shorter than it was"):
        open_slide(server.url("b.tiff"))


def test_a_truncated_object(server: FaultyServer) -> None:
    size = (server.root / "a.tiff").stat().st_size
    server.faults = Faults(cut_bytes=size // 2)
    with pytest.raises(SlideError, match="is cut short or damaged"):
        open_slide(server.url("a.tiff"))


def test_an_object_cut_while_it_is_open(server: FaultyServer) -> None:
    with open_slide(server.url("a.tiff")) as slide:
        server.faults = Faults(cut_bytes=10)
        with pytest.raises(SlideChangedError, match="has changed since"):
            everything(slide)


def test_a_slide_replaced_while_it_is_open(server: FaultyServer) -> None:
    with open_slide(server.url("a.tiff")) as slide:
        everything(slide)
        replace(server)
        server.forget()
        with pytest.raises(SlideChangedError, match="has changed since it was opened or indexed"):
            slide.read_region(0, 0, 10, 10)
        assert len(server.asked) == 1


def test_a_server_without_etags(server: FaultyServer) -> None:
    server.faults = Faults(without_etag=True)
    with open_slide(server.url("a.tiff")) as slide:
        np.testing.assert_array_equal(everything(slide), local(server))
        replace(server)
        os.utime(server.root / "a.tiff", (1, 1))
        with pytest.raises(SlideChangedError, match="has changed"):
            everything(slide)


def test_many_threads_share_a_slide(server: FaultyServer) -> None:
    expected = local(server)
    with open_slide(server.url("a.tiff")) as slide, ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: everything(slide), range(32)))
    assert all(np.array_equal(pixels, expected) for pixels in found)


def in_a_fork(read: object) -> bool:
    """Whether ``read()`` is true in a forked child; a hang is a failure."""
    assert callable(read)
    child = os.fork()
    if child == 0:
        is_true = False
        try:
            is_true = bool(read())
        finally:
            os._exit(0 if is_true else 1)
    ended: list[int] = []
    waiting = threading.Thread(target=lambda: ended.append(os.waitpid(child, 0)[1]), daemon=True)
    waiting.start()
    waiting.join(NEVER_S)
    if not ended:
        os.kill(child, 9)
        pytest.fail("reading in a forked child hangs")
    return ended == [0]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_reading_after_a_fork(server: FaultyServer) -> None:
    expected = local(server)
    slide = open_slide(server.url("a.tiff"))
    everything(slide)

    def reads_again() -> bool:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: everything(slide), range(4)))
        with open_slide(server.url("a.tiff"), version=slide.version) as anew:
            found.append(everything(anew))
        with pytest.raises(SlideError, match="404"):
            open_slide(server.url("none.tiff"))
        return all(np.array_equal(pixels, expected) for pixels in found)

    assert in_a_fork(reads_again)
    np.testing.assert_array_equal(everything(slide), expected)


def test_a_deep_zoom_folder_is_read_where_it_is(server: FaultyServer) -> None:
    tiles = server.root / "z_files" / "7"
    tiles.mkdir(parents=True)
    picture = pyramid(100, 80)[0]
    Image.fromarray(picture).save(tiles / "0_0.png")
    (server.root / "z.dzi").write_text(
        '<Image xmlns="http://schemas.microsoft.com/deepzoom/2008" Format="png" Overlap="0" '
        'TileSize="128"><Size Width="100" Height="80"/></Image>'
    )
    with open_slide(server.url("z.dzi"), mpp=1.0) as slide:
        np.testing.assert_array_equal(everything(slide), picture)
        assert slide.version
    with pytest.raises(SlideChangedError, match="has changed"):
        open_slide(server.url("z.dzi"), version="another", size=7)


@pytest.mark.parametrize(
    "location",
    ["s3://", "http://", "https://[::1/a.svs", "http://127.0.0.1:99999/a.svs", "az://a/a.svs"],
)
def test_an_address_that_means_nothing(location: str) -> None:
    with pytest.raises(SlideError, match="is no address that can be read: .* Check it"):
        open_slide(location)


@pytest.mark.parametrize("text", ["soon", "0", "-3", "inf"])
def test_an_absurd_time_limit(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("ANLAGE_REMOTE_SECONDS", text)
    with pytest.raises(AnlageError, match=f"needs a number of seconds above 0; got '{text}'"):
        open_slide("http://127.0.0.1:9/a.svs")


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "erosion__HE.tiff"])
def test_a_real_slide_says_and_shows_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("ANLAGE_CACHE", str(tmp_path))
    with serve(slides_folder()) as server, open_slide(slides_folder() / name) as here:
        for _ in range(2):  # parsed, and from its sidecar
            with open_slide(server.url(name)) as there:
                assert (there.vendor, there.levels) == (here.vendor, here.levels)
                assert (there.resolution, there.icc_profile) == (here.resolution, here.icc_profile)
                assert there.associated == here.associated
                for picture in here.associated:
                    np.testing.assert_array_equal(
                        there.read_associated(picture), here.read_associated(picture)
                    )
                np.testing.assert_array_equal(
                    there.read_region(700, 300, 900, 800), here.read_region(700, 300, 900, 800)
                )
                windows = [TileWindow(x, 400, 224, 1.0) for x in (0, 240, 900)]
                pairs = zip(read_tiles(there, windows), read_tiles(here, windows), strict=True)
                for found, expected in pairs:
                    np.testing.assert_array_equal(found, expected)
