"""Masks as every metric of images takes them: integers, image by image, truth beside prediction."""

# Shape suffixes: H, W pixels of an image; images may differ in size.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from anlage.probes.checks import Rows

Masks = Sequence[Rows] | Rows
"""(N, H, W) array or tensor, or a list of N images (H, W)."""


def mask_pairs(
    who: str, truth: Masks, predicted: Masks, *, names: tuple[str, str] = ("truth", "predicted")
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Images of both sides, one after the other, of equal shape and of integers or booleans.

    Args:
        who: Function that asks, for the message.
        truth: N images.
        predicted: N images.
        names: Of the two, for the message.

    Raises:
        ValueError: If numbers or shapes of the images differ, an image is no (H, W) mask, or one
            holds fractions or negative numbers. The numbers of images are compared first.
    """
    sides = images_of(who, names[0], truth), images_of(who, names[1], predicted)
    if len(sides[0]) != len(sides[1]):
        msg = (
            f"{who}: needs one {names[1]} mask for each {names[0]} mask; got {len(sides[1])} and "
            f"{len(sides[0])}. Check that images were dropped from both sides or from neither."
        )
        raise ValueError(msg)
    for number, given in enumerate(zip(*sides, strict=True)):
        pair = tuple(
            _mask(who, f"{name} mask {number}", image)
            for name, image in zip(names, given, strict=True)
        )
        if pair[0].shape != pair[1].shape:
            msg = (
                f"{who}: masks {number} need one shape; got {pair[0].shape} for {names[0]} and "
                f"{pair[1].shape} for {names[1]}. Resize by nearest neighbour, or crop."
            )
            raise ValueError(msg)
        yield pair[0], pair[1]


def images_of(who: str, name: str, masks: Masks) -> Sequence[Any]:
    """Masks as a sequence of one or more images.

    Raises:
        ValueError: If there is none, or a single image is given where N are needed.
    """
    images = masks if isinstance(masks, Sequence | Tensor | np.ndarray) else np.asarray(masks)
    shape = getattr(images, "shape", None)
    if len(images) == 0 or (shape is not None and len(shape) != 3):
        msg = (
            f"{who}: {name} needs one or more (H, W) masks, as a list or an (N, H, W) array; got "
            f"{'none' if len(images) == 0 else f'shape {tuple(shape or ())}'}. "
            "Put a single mask into a list."
        )
        raise ValueError(msg)
    return cast("Sequence[Any]", images)


def instance_ids(who: str, name: str, mask_HW: NDArray[Any]) -> NDArray[Any]:
    """The mask, if it can hold ids of instances.

    Raises:
        ValueError: If it is boolean.
    """
    if mask_HW.dtype.kind == "b":
        msg = (
            f"{who}: {name} needs an id for each instance (0 is background); got a boolean mask, "
            "in which nuclei that touch are one. Number the instances; for regions that do not "
            "touch, scipy.ndimage.label does."
        )
        raise ValueError(msg)
    return mask_HW


def _mask(who: str, name: str, image: Any) -> NDArray[Any]:  # noqa: ANN401
    mask = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    if mask.ndim != 2 or not mask.size:
        msg = f"{who}: {name} needs (H, W) pixels; got shape {mask.shape}. Give one number a pixel."
        raise ValueError(msg)
    if mask.dtype.kind not in "iub":
        msg = (
            f"{who}: {name} needs integers; got {mask.dtype}. Take the class of largest score "
            "(argmax), or round ids that were stored as fractions."
        )
        raise ValueError(msg)
    if mask.dtype.kind == "i" and mask.min() < 0:
        msg = (
            f"{who}: {name} needs numbers of 0 or more; got {mask.min()}. Give pixels to leave out "
            "a number of their own and name it, or call them background (0)."
        )
        raise ValueError(msg)
    return mask
