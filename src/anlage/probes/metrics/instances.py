"""AJI and panoptic quality of masks of instances (nuclei, glands), from counts by image."""

# Shape suffixes: N images, C classes, I true instances, J predicted ones, P pairs that overlap,
# H, W pixels.

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from anlage.probes.metrics.group_sums import ratio
from anlage.probes.metrics.image_counts import mean_of_images, mean_of_pooled
from anlage.probes.metrics.masks import Masks, instance_ids, mask_pairs

PQ_COLUMNS = ("n_true", "n_matched", "n_predicted", "iou_sum")
AJI_COLUMNS = ("n_true", "intersection_px", "union_px")
MATCHING_IOU = 0.5


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class InstanceCounts:
    """What AJI and panoptic quality need of each image and class.

    Attributes:
        n_true_NC: (N, C) int64 true instances; C is 1 without classes.
        n_predicted_NC: (N, C) int64 predicted instances.
        n_matched_NC: (N, C) int64 pairs with IoU above 0.5, which are unique.
        iou_sum_NC: (N, C) float64 IoU summed over those pairs.
        aji_NC2: (N, C, 2) int64 intersection and union of AJI, pixels.
        aji_plus_NC2: (N, C, 2) int64 those of AJI+.
    """

    n_true_NC: NDArray[np.int64]
    n_predicted_NC: NDArray[np.int64]
    n_matched_NC: NDArray[np.int64]
    iou_sum_NC: NDArray[np.float64]
    aji_NC2: NDArray[np.int64]
    aji_plus_NC2: NDArray[np.int64]

    @property
    def pq_columns(self) -> tuple[NDArray[Any], ...]:
        """The columns of the metrics of panoptic quality."""
        return self.n_true_NC, self.n_matched_NC, self.n_predicted_NC, self.iou_sum_NC

    @property
    def aji_columns(self) -> tuple[NDArray[Any], ...]:
        """The columns of ``AJI``."""
        return self.n_true_NC, self.aji_NC2[..., 0], self.aji_NC2[..., 1]

    @property
    def aji_plus_columns(self) -> tuple[NDArray[Any], ...]:
        """The columns of ``AJI_PLUS``."""
        return self.n_true_NC, self.aji_plus_NC2[..., 0], self.aji_plus_NC2[..., 1]

    def pq(self) -> NDArray[np.float64]:
        """(C,) panoptic quality of each class over all images; NaN for a class without instance."""
        return _pq(*(column.sum(axis=0) for column in self.pq_columns))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Overlaps:
    """Areas of the instances of one image, and how they overlap.

    Attributes:
        true_I: (I,) int64 area of each true instance, by rising id, pixels.
        predicted_J: (J,) int64 area of each predicted one.
        pair_P2: (P, 2) int64 places of the pairs that share a pixel.
        shared_P: (P,) int64 pixels they share.
    """

    true_I: NDArray[np.int64]
    predicted_J: NDArray[np.int64]
    pair_P2: NDArray[np.int64]
    shared_P: NDArray[np.int64]

    @property
    def union(self) -> NDArray[np.int64]:
        """(P,) pixels of either of each pair."""
        both: NDArray[np.int64] = (
            self.true_I[self.pair_P2[:, 0]] + self.predicted_J[self.pair_P2[:, 1]] - self.shared_P
        )
        return both


def instance_counts(
    truth: Masks,
    predicted: Masks,
    *,
    truth_class: Masks | None = None,
    predicted_class: Masks | None = None,
    n_classes: int | None = None,
) -> InstanceCounts:
    """Match the instances of each image; with classes, those of each class among themselves.

    An instance is of the class that most of its pixels have (the lower of two that tie); classes
    count from 1, and an instance mostly of class 0 is of none and left out.

    Args:
        truth: (N, H, W) ids of instances, 0 for background, or a list of N (H, W) of any sizes. Ids
            need not be in order; the pixels of one need not be connected.
        predicted: The same for the prediction.
        truth_class: The same with classes 0 to C. None for one class that holds all (bPQ).
        predicted_class: Given with ``truth_class``.
        n_classes: C, given with classes.

    Raises:
        ValueError: If masks do not fit, hold no integer ids, or classes are given in part.

    Source: see ``AJI``, ``AJI_PLUS`` and ``PQ_OVER_IMAGES``.
    """
    who = "instance_counts"
    pairs = list(mask_pairs(who, truth, predicted))
    for number, (true, guess) in enumerate(pairs):
        instance_ids(who, f"truth mask {number}", true)
        instance_ids(who, f"predicted mask {number}", guess)
    if truth_class is None and predicted_class is None and n_classes is None:
        rows = [[_counts(overlaps(true, guess))] for true, guess in pairs]
    elif truth_class is None or predicted_class is None or n_classes is None:
        msg = (
            f"{who}: classes need truth_class, predicted_class and n_classes; got some of them. "
            "Give all three, or none for instances without classes."
        )
        raise ValueError(msg)
    else:
        sides = ((truth, truth_class, "truth"), (predicted, predicted_class, "predicted"))
        split = [
            [
                _by_class(f"{name} class mask {number}", *pair, n_classes=n_classes)
                for number, pair in enumerate(
                    mask_pairs(who, ids, classes, names=(name, f"{name}_class"))
                )
            ]
            for ids, classes, name in sides
        ]
        rows = [
            [_counts(overlaps(true, guess)) for true, guess in zip(*images, strict=True)]
            for images in zip(*split, strict=True)
        ]
    table_NC8 = np.array(rows, dtype=np.float64)
    whole_NC8 = table_NC8.astype(np.int64)
    return InstanceCounts(
        n_true_NC=whole_NC8[..., 0],
        n_predicted_NC=whole_NC8[..., 1],
        n_matched_NC=whole_NC8[..., 2],
        iou_sum_NC=table_NC8[..., 3],
        aji_NC2=whole_NC8[..., 4:6],
        aji_plus_NC2=whole_NC8[..., 6:8],
    )


def overlaps(truth_HW: NDArray[Any], predicted_HW: NDArray[Any]) -> Overlaps:
    """Areas and shared pixels of the instances of one image; 0 is background."""
    true_id, true_code = np.unique(truth_HW, return_inverse=True)
    guess_id, guess_code = np.unique(predicted_HW, return_inverse=True)
    has_ground = int(true_id[0] == 0), int(guess_id[0] == 0)
    true_area, guess_area = np.bincount(true_code.ravel()), np.bincount(guess_code.ravel())
    is_both = (truth_HW.ravel() != 0) & (predicted_HW.ravel() != 0)
    n_guess = len(guess_id)
    cell = true_code.ravel()[is_both].astype(np.int64) * n_guess + guess_code.ravel()[is_both]
    pair, shared_P = np.unique(cell, return_counts=True)
    place_P2 = np.stack([pair // n_guess - has_ground[0], pair % n_guess - has_ground[1]], axis=1)
    return Overlaps(
        true_I=true_area[has_ground[0] :],
        predicted_J=guess_area[has_ground[1] :],
        pair_P2=place_P2,
        shared_P=shared_P,
    )


def _counts(found: Overlaps) -> tuple[float, ...]:
    """True, predicted and matched instances, summed IoU, and the sums of AJI and AJI+."""
    iou_P = found.shared_P / found.union
    is_match_P = iou_P > MATCHING_IOU
    plus = _one_to_one(found, iou_P)
    return (
        len(found.true_I),
        len(found.predicted_J),
        int(is_match_P.sum()),
        float(iou_P[is_match_P].sum()),
        *_aji_sums(found, _best_of_each(found, iou_P)),
        *_aji_sums(found, plus),
    )


def _best_of_each(found: Overlaps, iou_P: NDArray[np.float64]) -> NDArray[np.int64]:
    """For each true instance that meets a prediction, the pair of largest IoU; ties: lower id."""
    order = np.lexsort((found.pair_P2[:, 1], -iou_P, found.pair_P2[:, 0]))
    _, first = np.unique(found.pair_P2[order, 0], return_index=True)
    return order[first]


def _one_to_one(found: Overlaps, iou_P: NDArray[np.float64]) -> NDArray[np.int64]:
    """The pairs, each instance in one at most, of largest summed IoU (Hungarian algorithm)."""
    row_I, row_P = np.unique(found.pair_P2[:, 0], return_inverse=True)
    column_J, column_P = np.unique(found.pair_P2[:, 1], return_inverse=True)
    place = np.full((len(row_I), len(column_J)), -1)
    place[row_P, column_P] = np.arange(len(iou_P))
    value = np.zeros(place.shape)
    value[row_P, column_P] = iou_P
    chosen: NDArray[np.int64] = place[linear_sum_assignment(value, maximize=True)]
    return chosen[chosen >= 0]


def _aji_sums(found: Overlaps, chosen: NDArray[np.int64]) -> tuple[int, int]:
    """Shared pixels of the chosen pairs; their unions and the areas of all that is in none."""
    alone_true = np.delete(found.true_I, found.pair_P2[chosen, 0])
    alone_predicted = np.delete(found.predicted_J, np.unique(found.pair_P2[chosen, 1]))
    union = found.union[chosen].sum() + alone_true.sum() + alone_predicted.sum()
    return int(found.shared_P[chosen].sum()), int(union)


def _by_class(
    name: str, ids_HW: NDArray[Any], class_HW: NDArray[Any], *, n_classes: int
) -> list[NDArray[np.int64]]:
    """The mask of ids once for each class from 1, holding only its instances."""
    if class_HW.max() > n_classes:
        msg = (
            f"instance_counts: {name} needs classes 0 to {n_classes}; got {class_HW.max()}. "
            "Raise n_classes, or call these pixels 0."
        )
        raise ValueError(msg)
    _, code = np.unique(ids_HW, return_inverse=True)
    code_HW = code.reshape(ids_HW.shape)
    cell = code_HW.astype(np.int64) * (n_classes + 1) + class_HW
    n_cells = (int(code_HW.max()) + 1) * (n_classes + 1)
    of_id = np.bincount(cell.ravel(), minlength=n_cells).reshape(-1, n_classes + 1).argmax(axis=1)
    is_instance_HW = ids_HW != 0
    class_of_pixel_HW = np.where(is_instance_HW, of_id[code_HW], 0)
    return [
        np.where(class_of_pixel_HW == c, code_HW + 1, 0).astype(np.int64)
        for c in range(1, n_classes + 1)
    ]


def _dq(
    n_true: NDArray[Any], n_matched: NDArray[Any], n_predicted: NDArray[Any], _: NDArray[Any]
) -> NDArray[np.float64]:
    return ratio(2 * n_matched, n_true + n_predicted)


def _sq(
    _true: NDArray[Any], n_matched: NDArray[Any], _guess: NDArray[Any], iou_sum: NDArray[Any]
) -> NDArray[np.float64]:
    return ratio(iou_sum, n_matched)


def _pq(
    n_true: NDArray[Any], _: NDArray[Any], n_predicted: NDArray[Any], iou_sum: NDArray[Any]
) -> NDArray[np.float64]:
    return ratio(2 * iou_sum, n_true + n_predicted)


def _aji(_: NDArray[Any], shared: NDArray[Any], union: NDArray[Any]) -> NDArray[np.float64]:
    return ratio(shared, union)


AJI = mean_of_images("aji", AJI_COLUMNS, _aji)
"""Aggregated Jaccard index: each true instance takes the prediction of largest IoU (one may be
taken twice); shared pixels of the pairs over their unions and all areas left alone. Mean over
images.

Source: Kumar et al. 2017, A dataset and a technique for generalized nuclear segmentation, IEEE TMI
36(7), algorithm 1."""

AJI_PLUS = mean_of_images("aji_plus", AJI_COLUMNS, _aji)
"""AJI with pairs one to one, of the largest summed IoU. Give it ``aji_plus_columns``.

Source: Graham et al. 2019, HoVer-Net, arXiv:1812.06499, and its code (get_fast_aji_plus)."""

PQ_OVER_IMAGES = mean_of_images("pq_over_images", PQ_COLUMNS, _pq)
"""Panoptic quality = summed IoU of matches / (matches + half the unmatched of both sides), of each
class in each image; mean over its classes, then over images: bPQ without classes, mPQ with.

Source: Kirillov et al. 2019, Panoptic segmentation, arXiv:1801.00868; Gamper et al. 2020, PanNuke
dataset extension, arXiv:2003.10778. PanNuke's code leaves out a class that is not in an image's
truth even where it is predicted; here that counts 0. It also averages by tissue."""

PQ_POOLED = mean_of_pooled("pq_pooled", PQ_COLUMNS, _pq)
"""Panoptic quality of each class over the instances of all images, then the mean over classes."""

DQ_POOLED = mean_of_pooled("dq_pooled", PQ_COLUMNS, _dq)
"""Detection quality: F1 of the matches with IoU above 0.5, pooled as ``PQ_POOLED``."""

SQ_POOLED = mean_of_pooled("sq_pooled", PQ_COLUMNS, _sq)
"""Segmentation quality: mean IoU of the matches, pooled as ``PQ_POOLED``."""
