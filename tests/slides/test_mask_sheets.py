from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_catalogue import make_catalogue

from anlage.geometry import Size
from anlage.slides import mask_sheets
from anlage.slides.mask_sheets import GAP_PX, OUTLINE, PICTURE, outlined, write_mask_sheets
from anlage.slides.masks import TissueMask

DARKER = 90  # of 200


def test_tissue_is_outlined_and_all_else_is_darker() -> None:
    mask = np.zeros((10, 12), bool)
    mask[2:8, 3:9] = True
    picture = np.full((100, 120, 3), 200, np.uint8)
    shown = outlined(picture, TissueMask(mask, 8.0), slide_size=Size(96, 80), slide_mpp=1.0)
    assert (shown[:20] == DARKER).all()
    assert (shown[20, 30:90] == OUTLINE).all()
    assert (shown[79, 30:90] == OUTLINE).all()
    assert (shown[20:80, 30] == OUTLINE).all()
    assert (shown[21:79, 31:89] == 200).all()
    assert (shown[80:] == DARKER).all()
    assert (picture == 200).all()


def test_a_mask_that_reaches_over_the_slides_edge_stays_in_place() -> None:
    mask = np.zeros((3, 3), bool)  # of a slide of 2.2 x 2.2 mask pixels
    mask[:, 2] = True
    picture = np.full((220, 220, 3), 200, np.uint8)
    shown = outlined(picture, TissueMask(mask, 10.0), slide_size=Size(22, 22), slide_mpp=1.0)
    assert (shown[:, :200] == DARKER).all()
    assert (shown[:, 201:] == 200).all()


def test_every_slide_is_on_a_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_sheets, "ROWS", 1)
    catalogue = make_catalogue(tmp_path / "slides", 3)
    sheets = write_mask_sheets(catalogue, tmp_path / "look")
    assert [sheet.name for sheet in sheets] == [
        "masks-0001-of-0002.png",
        "masks-0002-of-0002.png",
    ]
    assert sorted((tmp_path / "look").iterdir()) == sheets
    sheet = np.asarray(Image.open(sheets[0]).convert("RGB"))
    cell = sheet[GAP_PX:, GAP_PX:]
    scale = PICTURE.height / 192  # the slides of make_catalogue are 256 x 192
    left = cell[: PICTURE.height, : PICTURE.width].astype(int)
    right = cell[: PICTURE.height, PICTURE.width + GAP_PX :][:, : PICTURE.width].astype(int)
    middle = (round(95 * scale), round(95 * scale))
    assert abs(left[middle] - (190, 90, 160)).max() < 15
    assert np.array_equal(left[middle], right[middle])
    glass = (round(20 * scale), round(20 * scale))
    assert left[glass].min() > 230
    assert right[glass].max() < 130
    caption = cell[PICTURE.height :, : 2 * PICTURE.width]
    assert (caption < 100).any()
    assert (
        np.asarray(Image.open(sheets[1]).convert("RGB"))[:, sheet.shape[1] // 2 + 20 :] == 255
    ).all()
