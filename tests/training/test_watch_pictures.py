"""The picture of a look, read back and compared with the maps it shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from small_encoder import ARCHITECTURE, MEAN, STD, make_config, make_encoder, make_pixels

from anlage.explain.attention import attention_maps
from anlage.explain.pca import fit_patch_pca
from anlage.models.vit import VisionTransformer
from anlage.training.watch_pictures import draw_look, picture_path

STEP_PX, CELL_PX, LEFT_PX, TOP_PX = 230, 224, 6, 30


def make_model(**changes) -> VisionTransformer:
    model = VisionTransformer(**(ARCHITECTURE | changes))
    model.initialise(torch.Generator().manual_seed(0))
    return model


def cell(picture: np.ndarray, row: int, column: int) -> np.ndarray:
    top, left = TOP_PX + row * STEP_PX, LEFT_PX + column * STEP_PX
    return picture[top : top + CELL_PX, left : left + CELL_PX]


def centres(cell: np.ndarray) -> np.ndarray:
    """Colour in the middle of each of 4 x 4 patches."""
    return cell[28::56, 28::56].astype(int)


@pytest.fixture
def drawn(tmp_path):
    path = draw_look(
        make_model(), make_pixels(3), picture_path(tmp_path, 100), config=make_config()
    )
    return path, np.asarray(Image.open(path))


def test_one_row_a_tile_and_five_columns(drawn, tmp_path) -> None:
    path, picture = drawn
    assert path == tmp_path / "watch" / "step-00000100.png"
    assert picture.shape == (3 * STEP_PX + LEFT_PX + 24, 5 * STEP_PX + LEFT_PX, 3)
    assert (picture[:24] != 255).any()  # the names of the columns
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_tiles_and_colours_of_patches_are_those_of_the_encoder(drawn) -> None:
    encoder = make_encoder()
    encoder.model.load_state_dict(make_model().state_dict())
    tokens = encoder.patch_tokens(make_pixels(3)).numpy()
    colours = fit_patch_pca(tokens.reshape(-1, 24)).rgb(tokens).reshape(3, 4, 4, 3)
    for row in range(3):
        assert np.abs(centres(cell(drawn[1], row, 4)) - colours[row]).max() <= 1
        shown = cell(drawn[1], row, 0).reshape(32, 7, 32, 7, 3).mean(axis=(1, 3))
        tile = make_pixels(3)[row].permute(1, 2, 0).numpy()
        assert np.corrcoef(shown.ravel(), tile.ravel())[0, 1] > 0.9


def test_heat_rises_with_attention(drawn) -> None:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    maps = attention_maps(make_model().eval(), (make_pixels(3) / 255 - mean) / std).numpy()
    shown = {1: maps.mean(axis=1), 2: maps[:, 0], 3: maps[:, 2]}
    for column, wanted in shown.items():
        for row in range(3):
            heat = centres(cell(drawn[1], row, column))
            assert (heat[np.unravel_index(wanted[row].argmax(), (4, 4))] == (252, 255, 164)).all()
            red_and_green = heat[..., :2].sum(axis=-1).ravel()
            order = wanted[row].ravel().argsort()
            assert (np.diff(red_and_green[order]) >= -1).all()


def test_the_same_look_gives_the_same_picture_and_disturbs_nothing(drawn, tmp_path) -> None:
    model = make_model().train()
    model.blocks[0].eval()
    modes, state = [m.training for m in model.modules()], torch.get_rng_state()
    again = draw_look(model, make_pixels(3).numpy(), tmp_path / "again.png", config=make_config())
    assert again.read_bytes() == drawn[0].read_bytes()
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_a_head_named_twice_is_drawn_once(tmp_path) -> None:
    model = make_model(n_heads=1)
    path = draw_look(model, make_pixels(1), tmp_path / "one.png", config=make_config())
    assert Image.open(path).width == 4 * STEP_PX + LEFT_PX
    with pytest.raises(ValueError, match="heads need to be -1 to 0; got 1. Name heads"):
        draw_look(model, make_pixels(1), path, config=make_config(), heads=(0, 1))


def test_refuses_pixels_that_are_no_tiles(tmp_path) -> None:
    with pytest.raises(ValueError, match="draw_look: needs .* uint8 pixels; got shape"):
        draw_look(make_model(), make_pixels(2).float(), tmp_path / "a.png", config=make_config())
