from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest

from anlage.slides import openslide_reader
from anlage.slides.openslide_reader import OpenSlideReader
from anlage.slides.reader import UnknownFormatError, open_slide

NATIVE = {
    # name: (vendor, mpp, number of levels)
    "test3-TRITC.ndpi": ("hamamatsu", 0.2281750559, 7),
    "camelyon_multiframe_jp2k.dcm": ("dicom", 28.9685, 1),
    "highdicom_sm_image.dcm": ("dicom", 0.499, 1),
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
    assert given == [openslide_reader._CACHE] * 2
