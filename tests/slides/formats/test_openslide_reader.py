from __future__ import annotations

import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
from synthetic_slides import tissue_like, write_tiff

from anlage.slides.formats import openslide_reader
from anlage.slides.formats.openslide_reader import OpenSlideReader
from anlage.slides.reader import SlideReader, UnknownFormatError, open_slide
from anlage.slides.storage.byte_source import SlideChangedError

NATIVE = {
    # name: (vendor, mpp, number of levels)
    "test3-TRITC.ndpi": ("hamamatsu", 0.2281750559, 7),
}


@pytest.mark.parametrize("name", NATIVE)
def test_formats_that_are_left_to_it(shared_data: Path, name: str) -> None:
    path = shared_data / "slides" / "native" / name
    vendor, mpp, n_levels = NATIVE[name]
    with open_slide(path) as slide:
        assert (slide.reader, slide.vendor, len(slide.levels)) == ("openslide", vendor, n_levels)
        assert slide.mpp == pytest.approx(mpp)
        plain = openslide.OpenSlide(path)
        for i, level in enumerate(slide.levels):
            width, height = min(level.width, 300), min(level.height, 200)
            rgba = np.asarray(plain.read_region((0, 0), i, (width, height))).astype(float)
            alpha = rgba[..., 3:] / 255
            on_white = rgba[..., :3] * alpha + 255 * (1 - alpha)
            assert np.abs(slide.read_region(0, 0, width, height, level=i) - on_white).max() <= 1


@pytest.mark.parametrize(
    "name", ["highdicom_sm_image_grayscale.dcm", "highdicom_sm_image_jpegls.dcm"]
)
def test_what_it_cannot_read_is_refused_with_its_reason(shared_data: Path, name: str) -> None:
    with pytest.raises(UnknownFormatError, match="BitsAllocated value 16|transfer syntax"):
        OpenSlideReader(str(shared_data / "slides" / "native" / name))


def test_one_cache_for_all_slides(monkeypatch: pytest.MonkeyPatch) -> None:
    from anlage.samples import slides_folder

    given: list[object] = []
    keep = openslide.OpenSlide.set_cache
    monkeypatch.setattr(
        openslide.OpenSlide,
        "set_cache",
        lambda self, cache: (given.append(cache), keep(self, cache))[1],
    )
    for name in ("erosion__HE.tiff", "hodgkin__HE.tiff"):
        OpenSlideReader(str(slides_folder() / name)).close()
    assert given == [openslide_reader._SHARED.cache] * 2


def _read_in_child(slide: SlideReader, queue: Any) -> None:
    queue.put([slide.read_region(50 * i, 30 * i, 150, 150).tobytes() for i in range(20)])


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_it_reads_after_a_fork_while_threads_of_its_parent_read(tmp_path: Path) -> None:
    """A child that went on with its parent's handle or cache would now and then wait for ever."""
    path = write_tiff(tmp_path / "a.tiff", [tissue_like(1400, 1000)], compression="jpeg")
    with OpenSlideReader(str(path)) as slide, ThreadPoolExecutor(3) as pool:
        expected = [slide.read_region(50 * i, 30 * i, 150, 150).tobytes() for i in range(20)]
        stop = threading.Event()
        draw = np.random.default_rng(0)
        places = [(int(draw.integers(1200)), int(draw.integers(800))) for _ in range(97)]

        def read_on() -> None:
            while not stop.is_set():
                for place in places:
                    slide.read_region(*place, 150, 150)

        others = [pool.submit(read_on) for _ in range(3)]
        context = multiprocessing.get_context("fork")
        try:
            for _ in range(3):
                queue = context.Queue()
                child = context.Process(target=_read_in_child, args=(slide, queue))
                child.start()
                assert queue.get(timeout=120) == expected
                child.join(120)
        finally:
            stop.set()
        for other in others:
            other.result()


def test_a_child_does_not_touch_the_handle_of_its_parent(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tiff", [tissue_like(300, 200)])
    with OpenSlideReader(str(path)) as slide:
        before = (slide._slide, openslide_reader._SHARED.cache)
        pixels = slide.read_region(0, 0, 300, 200)
        openslide_reader._SHARED.renew()  # what a fork does in the child
        assert np.array_equal(slide.read_region(0, 0, 300, 200), pixels)
        after = (slide._slide, openslide_reader._SHARED.cache)
        assert all(a is not b for a, b in zip(before, after, strict=True))
        assert all(
            any(kept is old for kept in openslide_reader._SHARED.of_parents) for old in before
        )


@pytest.mark.parametrize("width", [300, 280])
def test_another_slide_in_its_place_is_not_read_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    path = write_tiff(tmp_path / "a.tiff", [tissue_like(300, 200)])
    read = openslide_reader._pixels

    def fail_once(*how: Any) -> np.ndarray:
        monkeypatch.setattr(openslide_reader, "_pixels", read)
        raise openslide.OpenSlideError(path)

    with OpenSlideReader(str(path)) as slide:
        write_tiff(tmp_path / "b.tiff", [tissue_like(width, 200, seed=8)]).replace(path)
        monkeypatch.setattr(openslide_reader, "_pixels", fail_once)
        with pytest.raises(SlideChangedError, match="has changed since it was opened"):
            slide.read_region(0, 0, 100, 100)
        openslide_reader._SHARED.renew()  # what a fork does in the child
        with pytest.raises(SlideChangedError, match="has changed since it was opened"):
            slide.read_region(0, 0, 100, 100)
