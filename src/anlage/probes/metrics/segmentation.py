"""Dice and IoU of masks of classes, from counts of pixels that can be resampled by patient."""

# Shape suffixes: N images, C classes, H, W pixels.

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anlage.probes.metrics.group_sums import ratio
from anlage.probes.metrics.image_counts import mean_of_images, mean_of_pooled
from anlage.probes.metrics.masks import Masks, mask_pairs

COLUMNS = ("true_px", "shared_px", "predicted_px")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SegmentationCounts:
    """Pixels of each class in each image.

    Attributes:
        true_NC: (N, C) int64 pixels that are truly of the class.
        shared_NC: (N, C) int64 pixels that are and were predicted as it.
        predicted_NC: (N, C) int64 pixels predicted as it.
    """

    true_NC: NDArray[np.int64]
    shared_NC: NDArray[np.int64]
    predicted_NC: NDArray[np.int64]

    @property
    def columns(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The columns of the metrics of this file."""
        return self.true_NC, self.shared_NC, self.predicted_NC

    def foreground(self) -> SegmentationCounts:
        """The same without class 0, the background."""
        return SegmentationCounts(
            true_NC=self.true_NC[:, 1:],
            shared_NC=self.shared_NC[:, 1:],
            predicted_NC=self.predicted_NC[:, 1:],
        )

    def dice(self) -> NDArray[np.float64]:
        """(C,) Dice of each class over all pixels; NaN for a class neither true nor predicted."""
        return _dice(*(column.sum(axis=0) for column in self.columns))

    def iou(self) -> NDArray[np.float64]:
        """(C,) IoU of each class over all pixels; NaN for a class neither true nor predicted."""
        return _iou(*(column.sum(axis=0) for column in self.columns))


def segmentation_counts(
    truth: Masks, predicted: Masks, *, n_classes: int, ignore: int | None = None
) -> SegmentationCounts:
    """Count the pixels of each class in each image.

    Args:
        truth: (N, H, W) masks of classes 0 to C - 1, or a list of N (H, W) of any sizes; booleans
            are classes 0 and 1.
        predicted: The same for the prediction.
        n_classes: C, background included.
        ignore: Value of true pixels that count for nothing; may be C or larger.

    Raises:
        ValueError: If masks do not fit, hold no integers or hold an unknown class.
    """
    counts = []
    for number, (true_HW, predicted_HW) in enumerate(
        mask_pairs("segmentation_counts", truth, predicted)
    ):
        true, guess = true_HW.ravel(), predicted_HW.ravel()
        if ignore is not None:
            is_counted = true != ignore
            true, guess = true[is_counted], guess[is_counted]
        for name, values in (("truth", true), ("predicted", guess)):
            _refuse_unknown(f"{name} mask {number}", values, n_classes=n_classes)
        counts.append(
            [
                np.bincount(values.astype(np.int64), minlength=n_classes)
                for values in (true, true[true == guess], guess)
            ]
        )
    table_N3C = np.array(counts, dtype=np.int64)
    return SegmentationCounts(
        true_NC=table_N3C[:, 0], shared_NC=table_N3C[:, 1], predicted_NC=table_N3C[:, 2]
    )


def _refuse_unknown(name: str, values: NDArray[Any], *, n_classes: int) -> None:
    if values.size and values.max() >= n_classes:
        msg = (
            f"segmentation_counts: {name} needs classes 0 to {n_classes - 1}; got {values.max()}. "
            "Raise n_classes, or name the value in ignore."
        )
        raise ValueError(msg)


def _dice(true: NDArray[Any], shared: NDArray[Any], predicted: NDArray[Any]) -> NDArray[np.float64]:
    return ratio(2 * shared, true + predicted)


def _iou(true: NDArray[Any], shared: NDArray[Any], predicted: NDArray[Any]) -> NDArray[np.float64]:
    return ratio(shared, true + predicted - shared)


DICE_OVER_PIXELS = mean_of_pooled("dice_over_pixels", COLUMNS, _dice)
"""Dice = 2 shared / (true + predicted) of each class over the pixels of all images, then the mean
over the classes that are true or predicted somewhere (micro over images)."""

DICE_OVER_IMAGES = mean_of_images("dice_over_images", COLUMNS, _dice)
"""Dice of each class in each image, the mean over the classes true or predicted in that image, then
the mean over images (macro). As MONAI's with reduction "mean", which leaves out a class that is
not in the truth even where it is predicted; here that counts 0."""

IOU_OVER_PIXELS = mean_of_pooled("iou_over_pixels", COLUMNS, _iou)
"""IoU (Jaccard) = shared / (true + predicted - shared), averaged as ``DICE_OVER_PIXELS``."""

IOU_OVER_IMAGES = mean_of_images("iou_over_images", COLUMNS, _iou)
"""IoU, averaged as ``DICE_OVER_IMAGES``."""
