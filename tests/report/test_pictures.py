from __future__ import annotations

import base64
import re

import cv2
import numpy as np

from anlage.report.found_files import without_folders
from anlage.report.patch_map import densest_window
from anlage.report.pictures import jpeg_uri, outline_path, png_uri, squares_path


def decoded(uri):
    kind, data = uri.split(",")
    pixels = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_UNCHANGED)
    return kind, pixels


def test_png_keeps_every_pixel_and_its_transparency(generator):
    pixels = generator.integers(0, 256, (5, 7, 4), dtype=np.uint8)
    kind, back = decoded(png_uri(pixels))
    assert kind == "data:image/png;base64"
    np.testing.assert_array_equal(back[..., [2, 1, 0, 3]], pixels)


def test_jpeg_keeps_red_red():
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 250
    _, back = decoded(jpeg_uri(red))
    assert back[8, 8, 2] > 230
    assert back[8, 8, 0] < 20


def test_an_outline_lies_on_the_edge_of_the_mask():
    mask = np.zeros((20, 30), np.bool_)
    mask[5:15, 10:25] = True
    numbers = np.array(re.findall(r"(\d+) (\d+)", outline_path(mask, per_mask_px=100.0)), int)
    # within half a mask pixel of the rectangle from (1000, 500) to (2500, 1500)
    assert abs(numbers.min(axis=0) - [1000, 500]).max() <= 50
    assert abs(numbers.max(axis=0) - [2500, 1500]).max() <= 50


def test_holes_are_outlined_and_empty_masks_are_not():
    mask = np.ones((40, 40), np.bool_)
    mask[15:25, 15:25] = False
    assert outline_path(mask, per_mask_px=1).count("M") == 2
    assert outline_path(np.zeros((4, 4), np.bool_), per_mask_px=1) == ""


def test_squares():
    assert squares_path([(3, 4, 10.2)]) == "M3 4h10v10h-10z"


def test_the_densest_window_against_a_search(generator):
    occupied = generator.random((9, 12)) < 0.5
    rows, columns = np.nonzero(occupied)
    cells = np.stack([columns, rows], axis=1) + 100
    chosen = densest_window(cells, most=16)
    best = max(occupied[y : y + 4, x : x + 4].sum() for y in range(9) for x in range(12))
    assert len(chosen) == best <= 16
    assert (np.ptp(cells[chosen], axis=0) < 4).all()


def test_all_cells_where_they_fit():
    cells = np.array([[0, 0], [50, 3]])
    np.testing.assert_array_equal(densest_window(cells, most=2), [0, 1])


def test_paths_are_cut_to_file_names():
    assert without_folders("cannot open /data/secret/x.svs: why") == "cannot open x.svs: why"
    assert without_folders("C:\\secret\\x.svs is cut short") == "x.svs is cut short"
    assert without_folders("µm/px and/or 1/2 of H&E/IHC") == "µm/px and/or 1/2 of H&E/IHC"
    assert without_folders("/tmp") == "tmp"
