"""PNG files of an explanation: named by kind and size, with the colours of the maps."""

import numpy as np
from PIL import Image
from weighty_encoder import weighty_encoder

from anlage.explain.explanation import explain_field
from anlage.explain.field import Field
from anlage.explain.pictures import (
    CAPTION_PX,
    CELL_PX,
    GAP_PX,
    enlarged,
    heat,
    sheet,
    write_pictures,
)


def test_heat_goes_from_black_to_yellow() -> None:
    share = np.zeros((20, 20), np.float32)
    share[0] = 0.01
    colours = heat(share)
    assert colours.shape == (20, 20, 3)
    assert colours[1, 0].max() < 5
    red, green, blue = colours[0, 0].astype(int).tolist()
    assert red > 240
    assert green > 240
    assert blue < 180


def test_one_sink_does_not_darken_the_rest() -> None:
    share = np.full((30, 30), 0.001, np.float32)
    share[3, 3] = 0.9
    assert heat(share)[0, 0].sum() > 500


def test_a_map_of_zeros_is_black() -> None:
    assert heat(np.zeros((4, 4), np.float32)).max() < 5


def test_a_sheet_puts_every_picture_in_its_place() -> None:
    pictures = [np.full((2, 2, 3), 40 * number, np.uint8) for number in range(6)]
    page = sheet(pictures, [str(number) for number in range(6)])
    step_y = CELL_PX + CAPTION_PX + GAP_PX
    assert page.shape == (2 * step_y + GAP_PX, 4 * (CELL_PX + GAP_PX) + GAP_PX, 3)
    for number in range(6):
        row, column = divmod(number, 4)
        y = GAP_PX + row * step_y + CAPTION_PX + CELL_PX // 2
        x = GAP_PX + column * (CELL_PX + GAP_PX) + CELL_PX // 2
        assert page[y, x, 0] == 40 * number


def test_files_of_all_kinds_and_sizes(tmp_path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    field = Field(name="x", pixels=pixels, mpp=0.5, is_stated=True)
    explanation = explain_field(weighty_encoder(), field, px=[32, 64])
    written = write_pictures(explanation, tmp_path / "out")
    names = ["field.png"]
    for px in ("0032", "0064"):
        names += [f"{kind}_{px}px.png" for kind in ("attention", "rollout", "pca")]
    assert [path.name for path in written] == names
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    stored = np.asarray(Image.open(tmp_path / "out" / "pca_0064px.png"))
    assert np.array_equal(stored, enlarged(explanation.looks[1].patch_rgb, 64))
