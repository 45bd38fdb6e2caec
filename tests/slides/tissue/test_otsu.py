from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from slide_tissue import tissue_of_slide

from anlage import samples
from anlage.slides.reader import open_slide
from anlage.slides.tissue import MIN_AREA_MM2, find_tissue

GLASS = (243, 242, 244)
PINK, PALE, GREY = (200, 120, 170), (232, 214, 228), (205, 205, 205)


def glass(height: int = 200, width: int = 300, *, colour: tuple[int, ...] = GLASS) -> np.ndarray:
    """A blank slide with a scanner's noise."""
    noise = np.random.default_rng(3).normal(0, 1.5, (height, width, 3))
    return np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)


def painted(colour: tuple[int, ...], *, on: np.ndarray | None = None) -> np.ndarray:
    pixels = glass() if on is None else on
    pixels[60:140, 80:220] = np.clip(
        np.random.default_rng(4).normal(colour, 3, (80, 140, 3)), 0, 255
    )
    return pixels


def block() -> np.ndarray:
    mask = np.zeros((200, 300), dtype=bool)
    mask[60:140, 80:220] = True
    return mask


@pytest.mark.parametrize(
    "colour", [PINK, PALE, GREY, (80, 40, 120), (150, 90, 20), (120, 180, 160)]
)
def test_a_block_of_any_stain_is_found_to_the_pixel_but_for_its_rim(
    colour: tuple[int, ...],
) -> None:
    found = find_tissue(painted(colour), mpp=8.0)
    assert (found != block()).mean() < 0.01
    assert found[62:138, 82:218].all()


@pytest.mark.parametrize("colour", [GLASS, (255, 255, 255), (228, 224, 246), (240, 236, 222)])
def test_a_blank_slide_is_empty_whatever_the_tint_of_its_glass(colour: tuple[int, ...]) -> None:
    assert not find_tissue(glass(colour=colour), mpp=8.0).any()


def test_tinted_glass_does_not_hide_tissue() -> None:
    found = find_tissue(painted(PINK, on=glass(colour=(228, 224, 246))), mpp=8.0)
    assert (found != block()).mean() < 0.01


def test_uneven_light_is_no_tissue() -> None:
    light = np.linspace(1, 0.96, 300)[None, :, None]
    assert not find_tissue((glass() * light).astype(np.uint8), mpp=8.0).any()


def test_a_window_full_of_tissue_is_not_split_into_pale_and_dark() -> None:
    pixels = np.full((200, 300, 3), (225, 200, 220), np.uint8)
    pixels[:, :150] = (120, 40, 110)
    pixels[:30, :100] = GLASS
    found = find_tissue(pixels, mpp=8.0)
    assert found[40:, :].all()
    assert not found[:25, :95].any()


def test_unscanned_black_fields_are_no_tissue() -> None:
    pixels = painted(PINK)
    pixels[:, 250:] = 3
    found = find_tissue(pixels, mpp=8.0)
    assert not found[:, 253:].any()
    assert found[62:138, 82:218].all()


def test_on_a_dark_background_brightness_is_tissue() -> None:
    pixels = painted((70, 2, 2), on=glass(colour=(3, 1, 1)))
    found = find_tissue(pixels, mpp=8.0)
    assert (found != block()).mean() < 0.01
    assert not find_tissue(glass(colour=(3, 1, 1)), mpp=8.0).any()


def test_specks_and_pinholes_below_the_smallest_area_go() -> None:
    side = int((MIN_AREA_MM2**0.5) * 1000 / 8.0)
    for edge, is_kept in ((side - 2, False), (side + 3, True)):
        pixels = glass()
        pixels[20 : 20 + edge, 20 : 20 + edge] = PINK
        assert find_tissue(pixels, mpp=8.0).any() == is_kept
        pixels = painted(PINK)
        pixels[90 : 90 + edge, 120 : 120 + edge] = GLASS
        assert find_tissue(pixels, mpp=8.0)[62:138, 82:218].all() != is_kept


def test_a_tiny_blank_picture_stays_empty() -> None:
    assert not find_tissue(glass(4, 4), mpp=8.0).any()


def test_a_coarser_picture_finds_about_the_same_tissue() -> None:
    fine = find_tissue(painted(PINK), mpp=8.0).mean()
    coarse = find_tissue(painted(PINK)[::2, ::2], mpp=16.0).mean()
    assert coarse == pytest.approx(fine, rel=0.05)


def test_other_than_rgb_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs \(H, W, 3\) uint8; got float64"):
        find_tissue(np.zeros((4, 4, 3)), mpp=8.0)


@pytest.mark.parametrize(
    "name", sorted(path.name for path in samples.slides_folder().glob("*.tiff"))
)
def test_bundled_windows_are_mostly_tissue_with_some_glass(name: str) -> None:
    with open_slide(samples.slides_folder() / name) as slide:
        found = tissue_of_slide(slide)
        pixels = slide.read_region(0, 0, *slide.size)[4::8, 4::8]
    assert found.mask.shape == tuple(side // 8 for side in slide.size[::-1])
    assert 0.65 < found.mask.mean() < 0.99
    assert pixels[found.mask].mean() < pixels[~found.mask].mean() - 20


# Least and greatest tissue share, judged by eye on overlays of each mask.
WHOLE_SLIDES = {
    "PASAB__PASAB": (0.12, 0.2),
    "amyloid__crystalviolet": (0.27, 0.4),
    "brain-mucormycosis__GMS": (0.42, 0.56),
    "brain-mucormycosis__HE": (0.46, 0.6),
    "crohn-colonoscopic-biopsy__HE1": (0.13, 0.22),
    "glycogenstorage__PAS": (0.22, 0.34),
    "glycogenstorage__PASD": (0.18, 0.27),
    "helicobacterpylori__IHC": (0.28, 0.4),
    "helicobacterpylori__giemsa": (0.34, 0.46),
    "helicobacterpylori__warthinstarry": (0.38, 0.5),
}


@pytest.mark.parametrize(("name", "bounds"), WHOLE_SLIDES.items())
def test_every_stain_gives_a_sensible_mask(
    shared_data: Path, name: str, bounds: tuple[float, float]
) -> None:
    with open_slide(shared_data / "slides" / "wholeslide" / f"{name}.tiff") as slide:
        found = tissue_of_slide(slide)
    assert bounds[0] < found.mask.mean() < bounds[1]
    assert not found.mask[:3, :3].all()


def test_fluorescence_gives_the_tissue_by_its_brightness(shared_data: Path) -> None:
    with open_slide(shared_data / "slides" / "native" / "test3-TRITC.ndpi") as slide:
        assert 0.7 < tissue_of_slide(slide).mask.mean() < 0.9


def test_a_nearly_blank_slide_gives_next_to_nothing(shared_data: Path) -> None:
    path = shared_data / "slides" / "native" / "kidney-48-5_IHC.tif"
    with open_slide(path, mpp=0.5) as slide:
        assert tissue_of_slide(slide).mask.mean() < 0.01
