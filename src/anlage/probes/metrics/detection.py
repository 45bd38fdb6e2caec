"""Detection F1: predicted points matched with true ones within a radius."""

# Shape suffixes: N images, I true points, J predicted ones, H, W pixels.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import Tensor

from anlage.probes.checks import Rows
from anlage.probes.metrics.group_sums import ratio
from anlage.probes.metrics.image_counts import mean_of_images, mean_of_pooled
from anlage.probes.metrics.masks import instance_ids

Matching = Literal["within_radius", "hovernet"]
COLUMNS = ("n_true", "n_matched", "n_predicted")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DetectionCounts:
    """Points of each image.

    Attributes:
        n_true_N: (N,) int64 true points.
        n_matched_N: (N,) int64 pairs.
        n_predicted_N: (N,) int64 predicted points.
    """

    n_true_N: NDArray[np.int64]
    n_matched_N: NDArray[np.int64]
    n_predicted_N: NDArray[np.int64]

    @property
    def columns(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The columns of the metrics of this file."""
        return self.n_true_N, self.n_matched_N, self.n_predicted_N


def detection_counts(
    truth: Sequence[Rows],
    predicted: Sequence[Rows],
    *,
    radius_px: float,
    matching: Matching = "within_radius",
) -> DetectionCounts:
    """Match true and predicted points of each image one to one (Hungarian algorithm).

    ``within_radius`` makes as many pairs within the radius as there can be, at the smallest summed
    distance. ``hovernet`` makes the smallest summed distance of all pairs and then drops those
    beyond the radius, so that a far point can cost a near pair; for published numbers.

    Args:
        truth: N arrays (I, 2) of points (x, y), pixels; (0, 2) for an image without.
        predicted: N arrays (J, 2).
        radius_px: Largest distance of a pair, above 0; 12 px at 0.25 mpp for HoVer-Net's F_d.
        matching: Which rule.

    Raises:
        ValueError: If numbers of images differ, points are no finite (I, 2), or a setting is out
            of range.

    Source: Graham et al. 2019, HoVer-Net, arXiv:1812.06499, and its code (pair_coordinates).
    """
    who = "detection_counts"
    if len(truth) != len(predicted) or len(truth) == 0:
        msg = (
            f"{who}: needs predicted points for each image; got {len(truth)} images of truth and "
            f"{len(predicted)} of predictions. Give (0, 2) for an image without points."
        )
        raise ValueError(msg)
    if not 0 < radius_px < float("inf") or matching not in get_args(Matching):
        msg = (
            f"{who}: needs radius_px above 0 and a matching of {get_args(Matching)}; got "
            f"{radius_px} and {matching!r}. HoVer-Net's radius is 12 px at 0.25 mpp."
        )
        raise ValueError(msg)
    sides = [
        [_points(f"{who}: {name} of image {number}", given) for number, given in enumerate(side)]
        for name, side in (("truth", truth), ("predicted", predicted))
    ]
    matched = [
        _n_matched(true, guess, radius_px=radius_px, matching=matching)
        for true, guess in zip(*sides, strict=True)
    ]
    return DetectionCounts(
        n_true_N=np.array([len(points) for points in sides[0]]),
        n_matched_N=np.array(matched),
        n_predicted_N=np.array([len(points) for points in sides[1]]),
    )


def centroids(mask_HW: Rows) -> NDArray[np.float64]:
    """(I, 2) mean pixel (x, y) of each instance, by rising id; 0 is background.

    Raises:
        ValueError: If the mask is boolean or no (H, W) integers.
    """
    mask = mask_HW.detach().cpu().numpy() if isinstance(mask_HW, Tensor) else np.asarray(mask_HW)
    if mask.ndim != 2 or mask.dtype.kind not in "iub":
        msg = (
            f"centroids: needs an (H, W) mask of integer ids; got {mask.dtype} of shape "
            f"{mask.shape}. Give one image."
        )
        raise ValueError(msg)
    mask = instance_ids("centroids", "mask", mask)
    y, x = np.nonzero(mask)
    _, code, n_pixels = np.unique(mask[y, x], return_inverse=True, return_counts=True)
    sums = [np.bincount(code, weights=values, minlength=len(n_pixels)) for values in (x, y)]
    return np.stack(sums, axis=1) / n_pixels[:, None]


def _points(name: str, given: Rows) -> NDArray[np.float64]:
    values = given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
    points = values.reshape(0, 2) if values.size == 0 else values
    if points.ndim != 2 or points.shape[1] != 2 or points.dtype.kind not in "iuf":
        msg = (
            f"{name} needs (I, 2) points (x, y); got {points.dtype} of shape {points.shape}. "
            "For masks of instances, centroids gives the points."
        )
        raise ValueError(msg)
    if not np.isfinite(points).all():
        msg = f"{name} needs finite points; got NaN or an infinity. Drop these points."
        raise ValueError(msg)
    return points.astype(np.float64)


def _n_matched(
    true_I2: NDArray[np.float64],
    predicted_J2: NDArray[np.float64],
    *,
    radius_px: float,
    matching: Matching,
) -> int:
    if not len(true_I2) or not len(predicted_J2):
        return 0
    distance_IJ = cdist(true_I2, predicted_J2)
    cost_IJ = distance_IJ
    if matching == "within_radius":  # one pair more is worth any distances
        too_far = radius_px * (min(distance_IJ.shape) + 1)
        cost_IJ = np.where(distance_IJ <= radius_px, distance_IJ, too_far)
    return int((distance_IJ[linear_sum_assignment(cost_IJ)] <= radius_px).sum())


def _f1(
    n_true: NDArray[Any], n_matched: NDArray[Any], n_predicted: NDArray[Any]
) -> NDArray[np.float64]:
    return ratio(2 * n_matched, n_true + n_predicted)


DETECTION_F1_POOLED = mean_of_pooled("detection_f1_pooled", COLUMNS, _f1)
"""2 matched / (true + predicted) over the points of all images: HoVer-Net's F_d."""

DETECTION_F1_OVER_IMAGES = mean_of_images("detection_f1_over_images", COLUMNS, _f1)
"""The same of each image, then the mean over images with a point of either side."""
