"""The path of the CPU: against slow views, the other path, other batches, threads and layouts."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anlage.tiles.augment.batched import make_batched
from anlage.tiles.augment.multi_crop import MultiCropSpec, views
from anlage.tiles.augment.one_by_one import make_one_by_one
from anlage.tiles.augment.parameters import draw_parameters

# Both paths round to bytes after each axis. torch's weights for bytes have 15 bits, so about one
# value in 150 is rounded the other way and is a byte off before the colours: it may be made up to
# about five times as large, and much more in the darkest stains, whose density is a logarithm.
MEAN, LARGEST, LARGEST_STAINED = 0.05 / 255, 8 / 255, 64 / 255
SMALL = MultiCropSpec(source_px=56, global_px=32, local_px=16, n_local=3)
CONTEXT = SMALL.model_copy(update={"mode": "extended_context"})
STAINED = SMALL.model_copy(update={"stain_jitter": 0.2, "stain_jitter_probability": 1.0})
WIDE_HUE = SMALL.model_copy(update={"jitter": (0.9, 0.9, 0.9, 0.5)})


def noise(n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randint(0, 256, (n, 3, 56, 56), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("first", "last", "edge_px"), [(0, 2, 32), (2, 5, 16)], ids=["global", "local"]
)
@pytest.mark.parametrize(
    "spec",
    [SMALL, CONTEXT, STAINED, WIDE_HUE],
    ids=["resized", "extended_context", "stains", "wide hue"],
)
def test_both_paths_agree(spec: MultiCropSpec, first: int, last: int, edge_px: int) -> None:
    flat = draw_parameters(range(24), spec=spec, seed=1).of_views(first, last)
    alone, together = (
        make(noise(24), flat, spec, edge_px=edge_px) for make in (make_one_by_one, make_batched)
    )
    difference = (alone - together).abs()
    assert difference.mean() <= MEAN
    assert difference.max() <= (LARGEST_STAINED if spec.stain_jitter else LARGEST)


@pytest.mark.gpu
@pytest.mark.parametrize("spec", [SMALL, CONTEXT, STAINED], ids=["resized", "context", "stains"])
def test_the_device_gives_the_host_s_views(spec: MultiCropSpec) -> None:
    here, there = (views(at, range(24), spec=spec, seed=1) for at in (noise(24), noise(24).cuda()))
    for name in ("global_crops", "local_crops"):
        difference = (getattr(here, name) - getattr(there, name).cpu()).abs()
        assert difference.mean() <= MEAN
        assert difference.max() <= (LARGEST_STAINED if spec.stain_jitter else LARGEST)


@settings(max_examples=15, deadline=None)
@given(others=st.lists(st.integers(0, 10**6), max_size=9), place=st.integers(0, 9))
def test_no_bit_depends_on_the_batch(others: list[int], place: int) -> None:
    pixels, place = noise(10), min(place, len(others))
    alone = views(pixels[:1], [77], spec=STAINED, seed=4)
    g = [*others[:place], 77, *others[place:]]
    batch = torch.cat([pixels[1 : 1 + place], pixels[:1], pixels[1 + place : 1 + len(others)]])
    crowd = views(batch, g, spec=STAINED, seed=4)
    assert torch.equal(alone.global_crops, crowd.global_crops[place :: len(g)])
    assert torch.equal(alone.local_crops, crowd.local_crops[place :: len(g)])


@pytest.fixture
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads(), cv2.getNumThreads()
    yield
    torch.set_num_threads(before[0])
    cv2.setNumThreads(before[1])


@pytest.mark.usefixtures("_threads_as_before")
def test_no_bit_depends_on_the_threads() -> None:
    spec = MultiCropSpec(stain_jitter=0.2, n_local=2)  # views large enough to be dealt to threads
    coarse = noise(2).permute(0, 2, 3, 1).numpy()
    large = np.stack(
        [cv2.resize(tile, (256, 256), interpolation=cv2.INTER_CUBIC) for tile in coarse]
    )
    pixels = torch.from_numpy(large).permute(0, 3, 1, 2)
    made = []
    for n_threads in (1, 2, 4):
        torch.set_num_threads(n_threads)
        cv2.setNumThreads(n_threads)
        made.append(views(pixels, range(2), spec=spec, seed=0))
    for other in made[1:]:
        assert torch.equal(made[0].global_crops, other.global_crops)
        assert torch.equal(made[0].local_crops, other.local_crops)


def test_the_layout_of_the_tiles_does_not_matter_and_they_are_left_alone() -> None:
    first = noise(4)
    last = first.contiguous(memory_format=torch.channels_last)
    before = first.clone()
    made = [views(pixels, range(4), spec=STAINED, seed=0) for pixels in (first, last)]
    assert torch.equal(made[0].global_crops, made[1].global_crops)
    assert torch.equal(made[0].local_crops, made[1].local_crops)
    assert torch.equal(first, before)
    assert torch.equal(last, before)


def test_a_crop_of_one_pixel_is_one_colour() -> None:
    nothing = {"jitter_probability": 0.0, "grayscale_probability": 0.0, "n_local": 0}
    spec = MultiCropSpec(source_px=56, global_px=32, global_scale=(1e-4, 1e-4), **nothing)
    flat = draw_parameters([0], spec=spec, seed=0).of_views(0, 1)
    assert (flat.width[0], flat.height[0]) == (1, 1)
    pixels = noise(1)
    expected = pixels[0, :, flat.top[0], flat.left[0]].float() / 255
    made = make_one_by_one(pixels, flat, spec, edge_px=32)
    torch.testing.assert_close(made[0], expected[:, None, None].expand(3, 32, 32))
