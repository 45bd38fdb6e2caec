from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anlage.tiles.augment.batched import make_batched
from anlage.tiles.augment.multi_crop import MultiCropSpec, Views, views
from anlage.tiles.augment.one_by_one import make_one_by_one
from anlage.tiles.augment.parameters import draw_parameters
from reference.tile_views import slow_view

PINNED_BOXES = [[4, 44, 130], [15, 42, 27], [248, 167, 125], [221, 183, 129]]
SMALL = MultiCropSpec(source_px=56, global_px=32, local_px=16, n_local=3)
CONTEXT = SMALL.model_copy(update={"mode": "extended_context"})


def tiles(n: int, source_px: int = 56) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    coarse = torch.randint(0, 256, (n, 3, 8, 8), generator=generator).float()
    smooth = torch.nn.functional.interpolate(coarse, size=source_px, mode="bicubic")
    noise = torch.randint(-20, 20, smooth.shape, generator=generator)
    return (smooth + noise).clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("make", [make_batched, make_one_by_one], ids=["batched", "one_by_one"])
@pytest.mark.parametrize("spec", [SMALL, CONTEXT], ids=["resized", "extended_context"])
def test_equals_slow_views_of_one_tile(spec: MultiCropSpec, make: Callable[..., Tensor]) -> None:
    """Bytes of PIL, colours of torchvision.

    A byte that is rounded the other way, where PIL's and our weights differ in their last bits, is
    1 / 255 off before the colours, which may make about five times as much of it. PIL's weights
    have 22 bits, those of batches 24 and torch's for bytes 15.
    """
    pixels, g = tiles(12), range(100, 112)
    parameters = draw_parameters(list(g), spec=spec, seed=3)
    for first, last, edge in ((0, 2, 32), (2, 5, 16)):
        flat = parameters.of_views(first, last)
        crops = make(pixels, flat, spec, edge_px=edge)
        slow = [
            slow_view(pixels[i % 12], flat, i, edge_px=edge, kernel_px=9) for i in range(len(crops))
        ]
        difference = (crops - torch.stack(slow)).abs()
        assert difference.max() <= 8 / 255
        assert difference.flatten(1).mean(1).max() <= 0.2 / 255
        assert difference.mean() <= (0.001 if make is make_batched else 0.05) / 255


def test_views_are_of_the_path_for_their_device() -> None:
    flat = draw_parameters([0, 1], spec=SMALL, seed=0).of_views(0, 2)
    expected = make_one_by_one(tiles(2), flat, SMALL, edge_px=32)
    assert torch.equal(views(tiles(2), [0, 1], spec=SMALL, seed=0).global_crops, expected)


def test_shapes_type_and_bounds() -> None:
    made = views(tiles(5), range(5), spec=SMALL, seed=0)
    assert made.global_crops.shape == (10, 3, 32, 32)
    assert made.local_crops.shape == (15, 3, 16, 16)
    for crops in (made.global_crops, made.local_crops):
        assert crops.dtype == torch.float32
        assert crops.is_contiguous()
        assert crops.min() >= 0
        assert crops.max() <= 1
        assert not crops.isnan().any()


@pytest.mark.parametrize("value", [0, 255])
def test_black_and_white_tiles_stay_finite(value: int) -> None:
    made = views(torch.full((8, 3, 56, 56), value, dtype=torch.uint8), range(8), spec=SMALL, seed=1)
    assert made.global_crops.isfinite().all()
    assert made.local_crops.isfinite().all()


def rows(made: Views, sample: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return made.global_crops[sample::n], made.local_crops[sample::n]


@settings(max_examples=15, deadline=None)
@given(others=st.lists(st.integers(0, 10**6), max_size=9), place=st.integers(0, 9))
def test_views_do_not_depend_on_the_batch(others: list[int], place: int) -> None:
    pixels = tiles(10)
    place = min(place, len(others))
    alone = views(pixels[:1], [77], spec=SMALL, seed=4)
    g = [*others[:place], 77, *others[place:]]
    batch = torch.cat([pixels[1 : 1 + place], pixels[:1], pixels[1 + place : 1 + len(others)]])
    crowd = views(batch, g, spec=SMALL, seed=4)
    for a, b in zip(rows(alone, 0, 1), rows(crowd, place, len(g)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_the_key_decides() -> None:
    pixels = tiles(1)
    same = [views(pixels, [5], spec=SMALL, seed=1).global_crops for _ in range(2)]
    assert torch.equal(*same)
    assert not torch.equal(same[0], views(pixels, [6], spec=SMALL, seed=1).global_crops)
    assert not torch.equal(same[0], views(pixels, [5], spec=SMALL, seed=2).global_crops)


def test_extended_context_keeps_the_scale() -> None:
    spec = MultiCropSpec(source_px=392, mode="extended_context")
    p = draw_parameters(list(range(500)), spec=spec, seed=0)
    edge = np.array([224] * 2 + [98] * 8)[:, None]
    side, aspect = np.sqrt(p.width * p.height) / edge, p.width / p.height
    rounding = 1 / 98
    assert side.min() >= 0.9 - rounding
    assert side.max() <= 1.1 + rounding
    assert side.min() < 0.91
    assert side.max() > 1.09
    assert aspect.min() >= 1 / 1.05 - 2 * rounding
    assert aspect.max() <= 1.05 + 2 * rounding
    assert abs(side.mean() - 1) < 0.005


def test_resized_crops_have_the_stated_area_and_aspect() -> None:
    spec = MultiCropSpec(source_px=256, local_px=96)
    p = draw_parameters(list(range(800)), spec=spec, seed=0)
    area, aspect = p.width * p.height / 256**2, p.width / p.height
    for part, low, high in ((area[:2], 0.32, 1.0), (area[2:], 0.05, 0.32)):
        assert part.min() > low - 0.01
        assert part.max() < high + 0.01
    assert abs(area[2:].mean() - 0.185) < 0.005  # uniform
    assert abs(np.log(aspect[2:]).mean()) < 0.01  # log-uniform, so symmetric
    assert aspect.min() > 0.73
    assert aspect.max() < 1.37


@pytest.mark.parametrize("spec", [SMALL, CONTEXT], ids=["resized", "extended_context"])
def test_crops_lie_inside_the_tile_and_reach_its_edges(spec: MultiCropSpec) -> None:
    p = draw_parameters(list(range(3000)), spec=spec, seed=0)
    for start, length in ((p.left, p.width), (p.top, p.height)):
        assert start.min() == 0
        assert (start + length).max() == 56
        assert length.min() >= 1


def test_an_aspect_that_never_fits_falls_back_to_the_largest_crop() -> None:
    spec = MultiCropSpec(source_px=64, global_scale=(1.0, 1.0), aspect=(2.0, 2.0), n_local=0)
    p = draw_parameters([0], spec=spec, seed=0)
    assert p.width.tolist() == [[64], [64]]
    assert p.height.tolist() == [[32], [32]]


def test_chances_are_honoured() -> None:
    p = draw_parameters(list(range(4000)), spec=MultiCropSpec(), seed=8)
    for drawn, chance in (
        (p.hflip, 0.5),
        (p.vflip, 0.5),
        (p.jitter, 0.8),
        (p.grayscale, 0.2),
        (p.blur[0], 1.0),
        (p.blur[1], 0.1),
        (p.blur[2:], 0.5),
        (p.solarize[0], 0.0),
        (p.solarize[1], 0.2),
        (p.solarize[2:], 0.0),
    ):
        assert abs(drawn.mean() - chance) < 4 * np.sqrt(chance * (1 - chance) / drawn.size) + 1e-9
    orders = np.unique(p.order.reshape(-1, 4), axis=0, return_counts=True)[1]
    assert len(orders) == 24
    assert orders.min() > 0.9 * orders.mean()
    assert p.factors[..., 0].min() >= 0.6
    assert p.factors[..., 3].max() <= 0.1


def test_both_flips_happen() -> None:
    half = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    half[:, :, :8, :4] = 255  # bright in the upper left only
    plain = {
        "jitter": (0, 0, 0, 0),
        "grayscale_probability": 0,
        "n_local": 0,
        "n_global": 1,
        "global_blur_probability": (0,),
        "solarize_probability": (0,),
        "global_scale": (1, 1),
        "aspect": (1, 1),
    }
    spec = MultiCropSpec(source_px=16, global_px=16, **plain)
    corners = set()
    for g in range(40):
        crop = views(half, [g], spec=spec, seed=0).global_crops[0, 0]
        bright = crop > 0.5
        corners.add((bright[:8, :8].sum(), bright[:8, 8:].sum(), bright[8:, :8].sum()))
    assert len({tuple(int(v) for v in c) for c in corners}) == 4


def test_without_local_crops_there_are_none() -> None:
    spec = MultiCropSpec(source_px=56, global_px=32, n_local=0, local_px=16)
    assert views(tiles(2), [0, 1], spec=spec, seed=0).local_crops.shape == (0, 3, 16, 16)


def test_autocast_does_not_change_views() -> None:
    plain = views(tiles(2), [0, 1], spec=SMALL, seed=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = views(tiles(2), [0, 1], spec=SMALL, seed=0)
    assert torch.equal(plain.global_crops, cast.global_crops)


@pytest.mark.parametrize(
    ("pixels", "g"),
    [
        (torch.zeros(2, 3, 56, 56), [0, 1]),
        (torch.zeros(2, 3, 55, 55, dtype=torch.uint8), [0, 1]),
        (torch.zeros(2, 1, 56, 56, dtype=torch.uint8), [0, 1]),
        (torch.zeros(3, 56, 56, dtype=torch.uint8), [0, 1, 2]),
        (torch.zeros(2, 3, 56, 56, dtype=torch.uint8), [0]),
        (torch.zeros(0, 3, 56, 56, dtype=torch.uint8), []),
    ],
)
def test_unfit_pixels_are_refused(pixels: torch.Tensor, g: list[int]) -> None:
    with pytest.raises(ValueError, match=r"views: needs .*; got .*\. \w+"):
        views(pixels, g, spec=SMALL, seed=0)


def test_views_are_pinned() -> None:
    """A silent change of the stream would make runs incomparable."""
    p = draw_parameters([1234], spec=MultiCropSpec(), seed=42)
    drawn = np.stack([p.left, p.top, p.width, p.height])[:, :3, 0]
    assert drawn.tolist() == PINNED_BOXES
