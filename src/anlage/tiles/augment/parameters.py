"""What happens to each view of each sample, drawn from (seed, g) alone.

Shape suffixes: B samples, V views (global ones first), U numbers a view, A attempts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from anlage.tiles.augment.spec import MultiCropSpec
from anlage.tiles.keyed_random import Purpose, uniforms

Floats = NDArray[np.float64]
N_CROP_ATTEMPTS = 10  # torchvision's random resized crop tries as often
N_STAINS = 3
STAIN_ITEM = 1  # a sample's second piece of numbers: runs without stain jitter stay as they were
N_NUMBERS = 2 * N_CROP_ATTEMPTS + 16  # a view's numbers: its crop, then one for each decision below
JITTER_ORDERS = np.array(list(permutations(range(4))))


@dataclass(frozen=True, slots=True)
class ViewParameters:
    """Decisions for V views of B samples; every array begins with (V, B).

    Attributes:
        left: First source column of the crop, int64.
        top: First source row, int64.
        width: Source columns, int64.
        height: Source rows, int64.
        hflip: Whether the view is flipped left-right.
        vflip: Whether the view is flipped up-down.
        jitter: Whether the view is jittered.
        factors: (V, B, 4) brightness, contrast and saturation factors, hue in turns.
        order: (V, B, 4) which of the four comes first, second, third and last.
        stain: Whether the view's stains are changed.
        stain_factor: (V, B, 3) factor of each stain's concentration.
        stain_offset: (V, B, 3) what is added to it.
        grayscale: Whether the view loses its colour.
        blur: Whether the view is blurred.
        sigma: Standard deviation of the blur, pixels of the view.
        solarize: Whether bright values are inverted.
    """

    left: NDArray[np.int64]
    top: NDArray[np.int64]
    width: NDArray[np.int64]
    height: NDArray[np.int64]
    hflip: NDArray[np.bool_]
    vflip: NDArray[np.bool_]
    jitter: NDArray[np.bool_]
    factors: Floats
    order: NDArray[np.int64]
    stain: NDArray[np.bool_]
    stain_factor: Floats
    stain_offset: Floats
    grayscale: NDArray[np.bool_]
    blur: NDArray[np.bool_]
    sigma: Floats
    solarize: NDArray[np.bool_]

    def of_views(self, first: int, last: int) -> ViewParameters:
        """The views ``first`` to ``last - 1``, flattened view-major: arrays begin with (n * B,)."""
        flat = {}
        for field in fields(self):
            value = getattr(self, field.name)[first:last]
            flat[field.name] = value.reshape(-1, *value.shape[2:])
        return ViewParameters(**flat)


def draw_parameters(g: Sequence[int], *, spec: MultiCropSpec, seed: int) -> ViewParameters:
    """Draw every decision for the views of the samples ``g``.

    A sample's numbers come in one piece keyed by (seed, g), so they do not depend on the other
    samples, on the order of ``g`` or on the batch size.

    Args:
        g: Global indices of the samples.
        spec: What may happen.
        seed: Seed of the run.

    Returns:
        The decisions, arrays (V, B, ...) with the global views first.
    """
    n = spec.n_views * N_NUMBERS
    drawn = [uniforms(n, seed=seed, g=int(index), purpose=Purpose.VIEWS) for index in g]
    u_VBU = np.stack(drawn).reshape(len(drawn), spec.n_views, N_NUMBERS).swapaxes(0, 1)
    left, top, width, height = _boxes(u_VBU, spec)
    d_UVB = np.moveaxis(u_VBU[:, :, 2 * N_CROP_ATTEMPTS :], -1, 0)
    strength = np.array(spec.jitter)
    center = np.array([1.0, 1.0, 1.0, 0.0])
    sigma_low, sigma_high = spec.blur_sigma
    stain, stain_factor, stain_offset = _stain_changes(g, spec, seed)
    blur_chance = (*spec.global_blur_probability, *(spec.local_blur_probability,) * spec.n_local)
    solarize_chance = (*spec.solarize_probability, *(0.0,) * spec.n_local)
    return ViewParameters(
        left=left,
        top=top,
        width=width,
        height=height,
        hflip=d_UVB[2] < spec.hflip_probability,
        vflip=d_UVB[3] < spec.vflip_probability,
        jitter=d_UVB[4] < spec.jitter_probability,
        factors=center + strength * (2 * np.moveaxis(d_UVB[5:9], 0, -1) - 1),
        order=JITTER_ORDERS[(d_UVB[9] * len(JITTER_ORDERS)).astype(np.int64)],
        stain=stain,
        stain_factor=stain_factor,
        stain_offset=stain_offset,
        grayscale=d_UVB[10] < spec.grayscale_probability,
        blur=d_UVB[11] < np.array(blur_chance)[:, None],
        sigma=sigma_low + (sigma_high - sigma_low) * d_UVB[12],
        solarize=d_UVB[13] < np.array(solarize_chance)[:, None],
    )


def _stain_changes(
    g: Sequence[int], spec: MultiCropSpec, seed: int
) -> tuple[NDArray[np.bool_], Floats, Floats]:
    """Whether and how each view's stains change: (V, B), (V, B, 3) and (V, B, 3)."""
    shape = (spec.n_views, len(g), N_STAINS)
    if spec.stain_jitter == 0:
        return np.zeros(shape[:2], np.bool_), np.ones(shape), np.zeros(shape)
    n = spec.n_views * (1 + 2 * N_STAINS)
    drawn = [uniforms(n, seed=seed, g=int(i), purpose=Purpose.VIEWS, item=STAIN_ITEM) for i in g]
    u_VBU = np.stack(drawn).reshape(len(drawn), spec.n_views, -1).swapaxes(0, 1)
    spread_VBU = spec.stain_jitter * (2 * u_VBU[..., 1:] - 1)
    factor, offset = 1 + spread_VBU[..., :N_STAINS], spread_VBU[..., N_STAINS:]
    if spec.stain_vectors is not None:  # what lies across the two stains is no dye
        factor[..., 2], offset[..., 2] = 1, 0
    return u_VBU[..., 0] < spec.stain_jitter_probability, factor, offset


def _boxes(u_VBU: Floats, spec: MultiCropSpec) -> tuple[NDArray[np.int64], ...]:
    """Left, top, width and height of each crop, (V, B) int64, in pixels of the tile."""
    size_VBA, aspect_VBA = np.split(u_VBU[:, :, : 2 * N_CROP_ATTEMPTS], 2, axis=-1)
    if spec.mode == "resized":
        width, height = _resized_sizes(size_VBA, aspect_VBA, spec)
    else:
        width, height = _native_sizes(size_VBA[..., 0], aspect_VBA[..., 0], spec)
    u_left, u_top = u_VBU[:, :, 2 * N_CROP_ATTEMPTS], u_VBU[:, :, 2 * N_CROP_ATTEMPTS + 1]
    left = (u_left * (spec.source_px - width + 1)).astype(np.int64)
    top = (u_top * (spec.source_px - height + 1)).astype(np.int64)
    return left, top, width, height


def _resized_sizes(
    u_size_VBA: Floats, u_aspect_VBA: Floats, spec: MultiCropSpec
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Width and height by torchvision's random resized crop: the first attempt that fits."""
    scales = np.array([spec.global_scale] * spec.n_global + [spec.local_scale] * spec.n_local)
    low_V11, high_V11 = scales[:, 0, None, None], scales[:, 1, None, None]
    area = spec.source_px**2 * (low_V11 + (high_V11 - low_V11) * u_size_VBA)
    aspect = _log_uniform(u_aspect_VBA, *spec.aspect)
    width = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    height = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (np.minimum(width, height) >= 1) & (np.maximum(width, height) <= spec.source_px)
    first = fits.argmax(axis=-1)[..., None]
    whole_width = round(spec.source_px * min(1.0, spec.aspect[1]))
    whole_height = round(spec.source_px / max(1.0, spec.aspect[0]))
    found = fits.any(axis=-1)
    return (
        np.where(found, np.take_along_axis(width, first, -1)[..., 0], whole_width),
        np.where(found, np.take_along_axis(height, first, -1)[..., 0], whole_height),
    )


def _native_sizes(
    u_size_VB: Floats, u_aspect_VB: Floats, spec: MultiCropSpec
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Width and height close to the view's own edge, so that nuclei keep their size."""
    edges = [spec.global_px] * spec.n_global + [spec.local_px] * spec.n_local
    side = np.array(edges)[:, None] * (1 + spec.ect_scale * (2 * u_size_VB - 1))
    root = np.sqrt(_log_uniform(u_aspect_VB, 1 / (1 + spec.ect_aspect), 1 + spec.ect_aspect))
    width, height = np.rint(side * root), np.rint(side / root)
    return width.astype(np.int64), height.astype(np.int64)


def _log_uniform(u: Floats, low: float, high: float) -> Floats:
    spread: Floats = np.exp(np.log(low) + (np.log(high) - np.log(low)) * u)
    return spread
