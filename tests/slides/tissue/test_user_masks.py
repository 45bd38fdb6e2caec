from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from anlage.errors import TissueError
from anlage.geometry import Size
from anlage.slides.masks import MAX_MASK_PX, TissueMask, encode_mask
from anlage.slides.tissue import user_masks
from anlage.slides.tissue.user_masks import read_png, user_mask

SIZE = Size(160, 120)
SLIDE = {"slide_size": SIZE, "slide_mpp": 0.5}


def drawn(height: int = 15, width: int = 20) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[height // 5 : height // 2, width // 4 : width // 2] = True
    return mask


def write(path: Path, pixels: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), pixels)
    return path


def read(path: Path, mask_mpp: float = 4.0) -> np.ndarray:
    found = read_png(path, **SLIDE, mask_mpp=mask_mpp)
    assert found.mpp == mask_mpp
    return found.mask


@pytest.mark.parametrize(
    "pixels",
    [
        drawn() * np.uint8(255),
        drawn() * np.uint8(1),
        drawn() * np.uint16(256),
        np.dstack([drawn() * np.uint8(0), drawn() * np.uint8(9), drawn() * np.uint8(0)]),
        np.dstack([np.full((15, 20, 3), 7, np.uint8), drawn() * np.uint8(255)]),
        np.dstack([drawn() * np.uint8(7)] * 3 + [np.full((15, 20), 255, np.uint8)]),
    ],
    ids=["grey", "index", "16 bit", "colour", "alpha", "opaque"],
)
def test_what_is_not_black_is_tissue(tmp_path: Path, pixels: np.ndarray) -> None:
    assert np.array_equal(read(write(tmp_path / "a.png", pixels)), drawn())


def test_one_bit_pictures_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode_mask(drawn()))
    assert np.array_equal(read(tmp_path / "a.png"), drawn())


@pytest.mark.parametrize("mode", ["P", "LA", "I;16"])
def test_palettes_and_other_kinds_of_grey_are_read(tmp_path: Path, mode: str) -> None:
    if mode == "P":
        picture = Image.fromarray(drawn().astype(np.uint8)).convert("P")
        picture.putpalette([0, 0, 0, 200, 30, 30])
    elif mode == "LA":
        grey = Image.fromarray(np.full((15, 20), 80, np.uint8))
        picture = Image.merge("LA", (grey, Image.fromarray(drawn() * np.uint8(255))))
    else:
        picture = Image.fromarray(drawn().astype(np.uint16))
    picture.save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png"), drawn())


def test_a_picture_of_any_size_covers_the_slide(tmp_path: Path) -> None:
    large = cv2.resize(drawn() * np.uint8(255), (200, 150), interpolation=cv2.INTER_NEAREST)
    assert np.array_equal(read(write(tmp_path / "a.png", large)), drawn())
    small = write(tmp_path / "b.png", drawn()[::5, ::5] * np.uint8(255))
    assert np.array_equal(read(small), np.kron(drawn()[::5, ::5], np.ones((5, 5), bool)))
    assert read(small, mask_mpp=7.0).shape == (9, 12)


def test_a_picture_that_reaches_over_the_edge_as_masks_do_is_taken_as_it_is(tmp_path: Path) -> None:
    mask = np.random.default_rng(2).random((9, 12)) < 0.5
    assert np.array_equal(read(write(tmp_path / "a.png", mask * np.uint8(1)), mask_mpp=7.0), mask)


@pytest.mark.parametrize("shape", [(20, 15), (15, 30), (150, 203), (10, 20)])
def test_another_shape_than_the_slides_is_refused(tmp_path: Path, shape: tuple[int, int]) -> None:
    path = write(tmp_path / "a.png", np.full(shape, 255, np.uint8))
    with pytest.raises(TissueError, match=rf"\(160 x 120\); got {shape[1]} x {shape[0]}\. It must"):
        read(path)


@pytest.mark.parametrize("shape", [(15, 20), (16, 20), (15, 21), (149, 200), (151, 200), (1, 1)])
def test_a_shape_that_was_rounded_is_taken(tmp_path: Path, shape: tuple[int, int]) -> None:
    assert read(write(tmp_path / "a.png", np.full(shape, 255, np.uint8))).all()


def test_black_damaged_and_huge_pictures_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.png", np.zeros((15, 20), np.uint8))
    with pytest.raises(TissueError, match="is black all over: no tissue"):
        read(path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(TissueError, match="is damaged"):
        read(path)
    path.write_bytes(b"no picture")
    with pytest.raises(TissueError, match="is no PNG that can be read"):
        read(path)
    monkeypatch.setattr(user_masks, "MAX_PNG_PX", 100)
    with pytest.raises(TissueError, match="million pixels; at most 0 are read"):
        read(write(path, np.ones((15, 20), np.uint8)))


def find(folder: Path, slide_id: str, mask_mpp: float = 4.0, **settings: Any) -> TissueMask | None:
    return user_mask(folder, slide_id, **(SLIDE | settings), mask_mpp=mask_mpp)


def test_a_mask_is_found_by_its_slides_name(tmp_path: Path) -> None:
    write(tmp_path / "a.b.png", drawn() * np.uint8(255))
    ring = [[40, 24], [80, 24], [80, 56], [40, 56], [40, 24]]
    for suffix in ("geojson", "json"):
        polygon = {"type": "Polygon", "coordinates": [ring]}
        (tmp_path / f"{suffix}.{suffix}").write_text(json.dumps(polygon))
    for name in ("a.b", "geojson", "json"):
        found = find(tmp_path, name)
        assert found is not None
        assert np.array_equal(found.mask, drawn())
    assert find(tmp_path, "a") is None


def test_two_masks_of_a_slide_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.png", drawn() * np.uint8(255))
    (tmp_path / "a.geojson").write_text("{}")
    with pytest.raises(TissueError, match=r"one mask of 'a'; got a\.geojson and a\.png"):
        find(tmp_path, "a")
    with pytest.raises(TissueError, match="is no folder"):
        find(tmp_path / "nowhere", "a")


def test_a_mask_is_never_finer_than_its_slide_or_too_large(tmp_path: Path) -> None:
    write(tmp_path / "a.png", drawn() * np.uint8(255))
    found = find(tmp_path, "a", mask_mpp=0.1)
    assert found is not None
    assert found.mpp == 0.5
    huge = find(tmp_path, "a", mask_mpp=0.5, slide_size=Size(160_000, 120_000))
    assert huge is not None
    assert 0.98 * MAX_MASK_PX < huge.mask.size <= MAX_MASK_PX
    assert huge.mask.mean() == pytest.approx(drawn().mean(), rel=1e-3)
