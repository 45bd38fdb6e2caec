"""Stain jitter: a slow version, the published matrix, keys, batches, and being switched off."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from skimage.color import rgb_from_hed
from stained_pixels import mixed, two_stained

from anlage.tiles.augment.multi_crop import MultiCropSpec, views
from anlage.tiles.augment.parameters import draw_parameters
from anlage.tiles.augment.stain import jitter_stains, stain_basis
from anlage.tiles.stain import REFERENCE, estimate_stains

OFF = MultiCropSpec(source_px=48, global_px=32, local_px=16, n_local=3)
ON = OFF.model_copy(update={"stain_jitter": 0.2, "stain_jitter_probability": 0.7})
TWO = tuple(map(tuple, REFERENCE.vectors_23.tolist()))


def images(n: int = 4) -> torch.Tensor:
    picture = torch.rand(n, 3, 5, 7, generator=torch.Generator().manual_seed(n))
    picture[0, :, 0] = 1.0
    picture[0, :, 1] = 0.0
    return picture


def slow_jitter(pixel: list[float], factor: list[float], offset: list[float], basis: np.ndarray):
    density = [-math.log(max(value, 1 / 510)) for value in pixel]
    concentration = np.linalg.solve(basis.T, density)
    changed = [f * c + o for f, c, o in zip(factor, concentration, offset, strict=True)]
    return [
        min(1.0, math.exp(-sum(changed[s] * basis[s, channel] for s in range(3))))
        for channel in range(3)
    ]


@pytest.mark.parametrize("vectors", [None, TWO], ids=["hed", "macenko"])
def test_equals_the_slow_version(vectors: tuple | None) -> None:
    basis = stain_basis(vectors)
    picture = images()
    rng = np.random.default_rng(1)
    factor, offset = rng.uniform(0.7, 1.3, (4, 3)), rng.uniform(-0.3, 0.3, (4, 3))
    made = jitter_stains(
        picture, torch.tensor(factor).float(), torch.tensor(offset).float(), basis_33=basis
    )
    for n, y, x in np.ndindex(4, 5, 7):
        pixel = picture[n, :, y, x].tolist()
        expected = slow_jitter(pixel, factor[n].tolist(), offset[n].tolist(), basis.numpy())
        np.testing.assert_allclose(made[n, :, y, x], expected, atol=2e-5)
    assert made.min() >= 0
    assert made.max() <= 1


def test_the_default_vectors_are_the_published_ones() -> None:
    np.testing.assert_array_equal(stain_basis(None).numpy(), rgb_from_hed)


def test_no_change_changes_nothing_and_leaves_its_input_alone() -> None:
    picture = images()
    before = picture.clone()
    same = jitter_stains(picture, torch.ones(4, 3), torch.zeros(4, 3), basis_33=stain_basis(None))
    torch.testing.assert_close(same, picture.clamp(min=1 / 510), atol=3e-6, rtol=0)
    assert torch.equal(picture, before)


def test_one_stain_alone_can_be_doubled() -> None:
    concentration = two_stained(9_000, seed=1)
    pixels = torch.tensor(mixed(concentration, REFERENCE.vectors_23)).float().add(1).div(240)
    picture = pixels.T.reshape(1, 3, 90, 100)
    factor = torch.tensor([[1.5, 1.0, 1.0]])
    made = jitter_stains(picture, factor, torch.zeros(1, 3), basis_33=stain_basis(TWO))
    shown = made[0].flatten(1).T.mul(240).sub(1).round().clamp(min=0).to(torch.uint8).numpy()
    was = np.percentile(concentration, 99, axis=0)
    now = estimate_stains(shown).strongest_2
    np.testing.assert_allclose(now / was, [1.5, 1.0], rtol=0.06)


def test_switched_off_it_leaves_every_bit_and_every_other_decision() -> None:
    pixels = (images(6)[:, :, :1, :1] * 255).expand(-1, -1, 48, 48).to(torch.uint8)
    idle = OFF.model_copy(update={"stain_jitter_probability": 1.0, "stain_vectors": TWO})
    a, b = (views(pixels, range(6), spec=spec, seed=5) for spec in (OFF, idle))
    assert torch.equal(a.global_crops, b.global_crops)
    assert torch.equal(a.local_crops, b.local_crops)
    without, with_it = (draw_parameters(list(range(6)), spec=s, seed=5) for s in (OFF, ON))
    for name in ("left", "width", "hflip", "factors", "order", "sigma", "solarize"):
        np.testing.assert_array_equal(getattr(without, name), getattr(with_it, name))


def test_the_key_decides_whatever_the_batch() -> None:
    alone = draw_parameters([77], spec=ON, seed=4)
    crowd = draw_parameters([3, 77, 12], spec=ON, seed=4)
    for name in ("stain", "stain_factor", "stain_offset"):
        np.testing.assert_array_equal(getattr(alone, name)[:, 0], getattr(crowd, name)[:, 1])
    other = draw_parameters([77], spec=ON, seed=5)
    assert (alone.stain_factor != other.stain_factor).all()
    per_view = alone.stain_factor[:, 0, 0]
    assert len(set(per_view.tolist())) == ON.n_views
    pixels = (images(3).repeat(1, 1, 10, 7)[:, :, :48, :48] * 255).to(torch.uint8)
    together = views(pixels, [3, 77, 12], spec=ON, seed=4)
    single = views(pixels[1:2], [77], spec=ON, seed=4)
    torch.testing.assert_close(single.local_crops, together.local_crops[1::3], atol=1e-6, rtol=0)


def test_strengths_and_chances_are_as_asked() -> None:
    drawn = draw_parameters(list(range(800)), spec=ON, seed=0)
    assert abs(drawn.stain.mean() - 0.7) < 0.03
    for values, centre in ((drawn.stain_factor, 1.0), (drawn.stain_offset, 0.0)):
        assert abs(values.mean() - centre) < 0.005
        assert 0.19 < np.abs(values - centre).max() <= 0.2
    two = draw_parameters([1, 2], spec=ON.model_copy(update={"stain_vectors": TWO}), seed=0)
    assert (two.stain_factor[..., 2] == 1).all()
    assert (two.stain_offset[..., 2] == 0).all()
    assert (two.stain_factor[..., :2] != 1).all()


def test_views_change_where_the_stains_do_and_want_no_gradient() -> None:
    pixels = (images(9).repeat(1, 1, 10, 7)[:, :, :48, :48] * 255).to(torch.uint8)
    plain, stained = (views(pixels, range(9), spec=spec, seed=2) for spec in (OFF, ON))
    flat = draw_parameters(list(range(9)), spec=ON, seed=2).of_views(0, 2)
    changed = (plain.global_crops != stained.global_crops).flatten(1).any(1).numpy()
    assert (changed <= flat.stain).all()
    assert changed.sum() > 9
    assert not stained.global_crops.requires_grad


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"stain_jitter": 1.0}, "less than 1"),
        ({"stain_vectors": [TWO[0]]}, "two densities of different directions"),
        ({"stain_vectors": [TWO[0], TWO[0]]}, "two densities of different directions"),
        ({"stain_vectors": [*TWO, TWO[0]]}, "two densities of different directions"),
        ({"stain_vectors": [TWO[0], (0.1, 0.2, float("nan"))]}, "stain_vectors"),
    ],
    ids=["strength", "one", "same", "three", "nan"],
)
def test_a_spec_that_cannot_be_is_refused(settings: dict, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        MultiCropSpec(**settings)
