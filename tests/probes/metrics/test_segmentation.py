import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, jaccard_score
from torchmetrics.functional.segmentation import dice_score, mean_iou

from anlage.probes.metrics.segmentation import (
    DICE_OVER_IMAGES,
    DICE_OVER_PIXELS,
    IOU_OVER_IMAGES,
    IOU_OVER_PIXELS,
    segmentation_counts,
)
from anlage.probes.uncertainty.bootstrap import cluster_bootstrap
from anlage.probes.uncertainty.paired import paired_bootstrap


@pytest.fixture
def masks(generator):
    truth = generator.integers(0, 4, (6, 20, 30))
    predicted = np.where(generator.random(truth.shape) < 0.7, truth, (truth + 1) % 4)
    truth[2][truth[2] == 3] = 0  # a class that one image lacks
    return truth, predicted


def test_classes_over_pixels_are_scikit_learns(masks) -> None:
    truth, predicted = masks
    counts = segmentation_counts(truth, predicted, n_classes=4)
    flat = truth.ravel(), predicted.ravel()
    np.testing.assert_allclose(counts.dice(), f1_score(*flat, average=None))
    np.testing.assert_allclose(counts.iou(), jaccard_score(*flat, average=None))
    assert DICE_OVER_PIXELS(*counts.columns) == pytest.approx(f1_score(*flat, average="macro"))
    foreground = counts.foreground()
    expected = jaccard_score(*flat, average="macro", labels=[1, 2, 3])
    assert IOU_OVER_PIXELS(*foreground.columns) == pytest.approx(expected)


def test_images_are_torchmetrics(masks) -> None:
    counts = segmentation_counts(*masks, n_classes=4)
    truth, predicted = (torch.from_numpy(side) for side in masks)
    settings = {"num_classes": 4, "input_format": "index"}
    dice = dice_score(predicted, truth, **settings, average="macro").mean().item()
    iou = mean_iou(predicted, truth, **settings).mean().item()
    assert DICE_OVER_IMAGES(*counts.columns) == pytest.approx(dice, abs=1e-6)
    assert IOU_OVER_IMAGES(*counts.columns) == pytest.approx(iou, abs=1e-6)


def test_a_class_of_neither_side_is_left_out_and_a_predicted_one_is_wrong() -> None:
    truth = np.zeros((2, 4, 4), dtype=np.uint8)
    predicted = truth.copy()
    truth[0, :2] = predicted[0, :2] = 1
    counts = segmentation_counts(truth, predicted, n_classes=3)
    assert counts.dice()[:2].tolist() == [1, 1]
    assert np.isnan(counts.dice()[2])
    assert DICE_OVER_IMAGES(*counts.foreground().columns) == 1  # the second image has no class
    predicted[1, 0, 0] = 2
    counts = segmentation_counts(truth, predicted, n_classes=3).foreground()
    assert DICE_OVER_IMAGES(*counts.columns) == 0.5
    assert DICE_OVER_PIXELS(*counts.columns) == 0.5
    with pytest.raises(ValueError, match="an image with something to score"):
        DICE_OVER_PIXELS(*(column[:1, 1:] for column in counts.columns))


def test_ignored_pixels_and_images_of_many_sizes(generator) -> None:
    truth = [generator.integers(0, 3, size) for size in ((5, 7), (9, 4))]
    predicted = [generator.integers(0, 2, mask.shape) for mask in truth]
    counts = segmentation_counts(truth, predicted, n_classes=2, ignore=2)
    flat = [np.concatenate([mask.ravel() for mask in side]) for side in (truth, predicted)]
    kept = flat[0] != 2
    np.testing.assert_allclose(counts.dice(), f1_score(flat[0][kept], flat[1][kept], average=None))
    booleans = segmentation_counts([mask == 1 for mask in predicted], predicted, n_classes=2)
    assert booleans.dice().tolist() == [1, 1]


@pytest.mark.parametrize(
    "metric", [DICE_OVER_PIXELS, DICE_OVER_IMAGES, IOU_OVER_PIXELS, IOU_OVER_IMAGES]
)
def test_weights_of_patients_are_repeated_images(masks, generator, metric) -> None:
    counts = segmentation_counts(*masks, n_classes=4)
    code = np.array([0, 0, 1, 2, 2, 2])
    weight = generator.integers(0, 3, (5, 3)).astype(float)
    weight[:, 0] += 1
    found = metric.over_groups(counts.columns, code, 3)(weight)
    for row, value in zip(weight, found, strict=True):
        images = np.repeat(np.arange(6), row[code].astype(int))
        again = segmentation_counts(masks[0][images], masks[1][images], n_classes=4)
        assert value == pytest.approx(metric(*again.columns))


def test_patients_are_bootstrapped_and_models_compared(masks) -> None:
    truth, predicted = masks
    worse = np.roll(predicted, 1, axis=2)
    counts = [segmentation_counts(truth, side, n_classes=4).columns for side in (predicted, worse)]
    patient = [1, 1, 2, 3, 4, 4]
    interval = cluster_bootstrap(DICE_OVER_IMAGES, counts[0], patient, n_resamples=50)
    assert interval.low <= interval.estimate <= interval.high
    difference = paired_bootstrap(DICE_OVER_IMAGES, *counts, patient, n_resamples=50)
    assert difference.estimate > 0


@pytest.mark.parametrize(
    ("truth", "predicted", "match"),
    [
        (np.zeros((2, 3, 3), int), np.zeros((1, 3, 3), int), "each truth mask; got 1 and 2"),
        (np.zeros((1, 3, 3), int), np.zeros((1, 3, 4), int), r"masks 0 need one shape"),
        (np.zeros((3, 3), int), np.zeros((3, 3), int), r"got shape \(3, 3\). Put a single mask"),
        ([], [], "one or more .* got none"),
        (np.zeros((1, 3, 3)), np.zeros((1, 3, 3), int), "truth mask 0 needs integers; got float64"),
        (np.zeros((1, 3, 3), int), np.full((1, 3, 3), 2), "predicted mask 0 needs classes 0 to 1"),
        (np.full((1, 3, 3), -1), np.zeros((1, 3, 3), int), "numbers of 0 or more; got -1"),
    ],
)
def test_counts_refuse(truth, predicted, match) -> None:
    with pytest.raises(ValueError, match=match):
        segmentation_counts(truth, predicted, n_classes=2)


def test_metrics_refuse_what_is_no_count() -> None:
    with pytest.raises(ValueError, match="shared_px needs counts"):
        DICE_OVER_PIXELS([[1, 2]], [1], [[1, 2]])
    with pytest.raises(ValueError, match="true_px needs counts of 0 or more; got -1"):
        DICE_OVER_PIXELS([-1], [1], [1])
