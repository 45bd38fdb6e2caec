import numpy as np
import pytest
import torch
from scipy import ndimage
from torchmetrics.detection import PanopticQuality

from anlage.probes.metrics.instances import (
    AJI,
    AJI_PLUS,
    DQ_POOLED,
    PQ_OVER_IMAGES,
    PQ_POOLED,
    SQ_POOLED,
    instance_counts,
)
from anlage.probes.uncertainty.bootstrap import cluster_bootstrap
from reference.instances import slow_aji, slow_aji_plus, slow_pq


def discs(generator, n, *, size=40):
    y, x = np.mgrid[:size, :size]
    image = np.zeros((size, size), dtype=np.int32)
    for number in range(1, n + 1):
        centre, radius = generator.integers(0, size, 2), generator.integers(3, 8)
        image[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2] = 7 * number
    return image


@pytest.fixture
def images(generator):
    truth = [discs(generator, 5) for _ in range(4)]
    predicted = [np.roll(image, 2, axis=1) for image in truth]
    predicted[1] = discs(generator, 4)
    predicted[2] = np.where(predicted[2] == 14, 7, predicted[2])  # two become one
    return np.stack(truth), np.stack(predicted)


def test_images_are_the_slow_version(images) -> None:
    counts = instance_counts(*images)
    pairs = list(zip(*images, strict=True))
    aji = [slow_aji(*pair) for pair in pairs]
    plus = [slow_aji_plus(*pair) for pair in pairs]
    pq = [slow_pq(*pair)[0] for pair in pairs]
    assert AJI(*counts.aji_columns) == pytest.approx(np.mean(aji))
    assert AJI_PLUS(*counts.aji_plus_columns) == pytest.approx(np.mean(plus))
    assert PQ_OVER_IMAGES(*counts.pq_columns) == pytest.approx(np.mean(pq))
    assert aji != plus
    one = instance_counts(images[0][:1], images[1][:1])
    assert (DQ_POOLED(*one.pq_columns), SQ_POOLED(*one.pq_columns)) == pytest.approx(
        slow_pq(*pairs[0])[1:]
    )


def test_an_example_by_hand() -> None:
    """Two true instances of 4 px; one found with 3 of its px and 1 beside, one missed; 2 px spare.

    IoU 3 / 5; AJI = 3 / (5 + 4 + 2); PQ = 0.6 / (1 + 0.5 + 0.5).
    """
    truth = np.array([[1, 1, 1, 1, 0, 2, 2, 2, 2, 0, 0, 0]])
    predicted = np.array([[0, 5, 5, 5, 5, 0, 0, 0, 0, 0, 9, 9]])
    counts = instance_counts([truth], [predicted])
    assert AJI(*counts.aji_columns) == pytest.approx(3 / 11)
    assert AJI_PLUS(*counts.aji_plus_columns) == pytest.approx(3 / 11)
    assert PQ_POOLED(*counts.pq_columns) == pytest.approx(0.3)
    assert counts.pq().tolist() == pytest.approx([0.3])


def test_a_half_overlap_is_no_match() -> None:
    truth, predicted = np.array([[1, 1, 0]]), np.array([[0, 1, 0]])
    assert PQ_POOLED(*instance_counts([truth], [predicted]).pq_columns) == 0


def test_one_prediction_over_two_instances_is_taken_twice_by_aji_only() -> None:
    truth, predicted = np.array([[1, 1, 1, 2, 2]]), np.array([[4, 4, 4, 4, 4]])
    counts = instance_counts([truth], [predicted])
    assert AJI(*counts.aji_columns) == pytest.approx((3 + 2) / (5 + 5))
    assert AJI_PLUS(*counts.aji_plus_columns) == pytest.approx(3 / (5 + 2))


def majority_class(ids, classes):
    result = np.zeros_like(ids)
    for number in np.unique(ids[ids != 0]):
        result[ids == number] = np.bincount(classes[ids == number]).argmax()
    return result


def test_classes_over_images_are_torchmetrics(images, generator) -> None:
    truth, predicted = images
    class_of = generator.integers(1, 4, 60)
    truth_class, predicted_class = class_of[truth], class_of[predicted]
    truth_class[truth == 0] = predicted_class[predicted == 0] = 0
    predicted_class[:, :, :3] = 0  # some pixels of an instance have another class
    counts = instance_counts(
        truth, predicted, truth_class=truth_class, predicted_class=predicted_class, n_classes=3
    )
    whole = [
        np.stack([majority_class(*pair) for pair in zip(*side, strict=True)])
        for side in ((truth, truth_class), (predicted, predicted_class))
    ]
    theirs = PanopticQuality(things={1, 2, 3}, stuffs={0}, return_per_class=True)
    pair = [
        torch.from_numpy(np.stack([classes, np.where(classes == 0, 0, ids)], axis=-1).astype(int))
        for classes, ids in zip(whole, (truth, predicted), strict=True)
    ]
    expected = theirs(pair[1], pair[0])[0, :3].numpy()
    np.testing.assert_allclose(counts.pq(), expected, atol=1e-6)
    assert PQ_POOLED(*counts.pq_columns) == pytest.approx(expected.mean(), abs=1e-6)


def test_a_class_of_neither_side_is_left_out() -> None:
    truth = np.array([[[1, 1, 0, 2, 2]], [[0, 0, 0, 0, 0]]])
    classes = np.array([[[1, 1, 0, 2, 2]], [[0, 0, 0, 0, 0]]])
    given = {"truth_class": classes, "predicted_class": classes, "n_classes": 4}
    counts = instance_counts(truth, truth, **given)
    assert PQ_OVER_IMAGES(*counts.pq_columns) == 1
    assert PQ_POOLED(*counts.pq_columns) == 1
    assert np.isnan(counts.pq()).tolist() == [False, False, True, True]
    lost = instance_counts(truth, np.zeros_like(truth))
    assert PQ_OVER_IMAGES(*lost.pq_columns) == AJI(*lost.aji_columns) == 0
    with pytest.raises(ValueError, match="aji: needs an image with something to score"):
        AJI(*instance_counts(truth[1:], truth[1:]).aji_columns)


@pytest.fixture(scope="module")
def consep(shared_data):
    file = np.load(shared_data / "segmentation" / "consep" / "train" / "masks.npz")
    return file["inst"][:12], file["type"][:12]


def test_real_nuclei_moved_and_eroded(consep) -> None:
    ids, types = consep
    perfect = instance_counts(ids, ids, truth_class=types, predicted_class=types, n_classes=4)
    assert AJI(*perfect.aji_columns) == PQ_POOLED(*perfect.pq_columns) == 1
    moved = np.roll(ids, 3, axis=2)
    eroded = np.stack([np.where(ndimage.grey_erosion(i, 3) == i, i, 0) for i in ids])
    for predicted in (moved, eroded):
        counts = instance_counts(ids, predicted)
        corners = ids[:3, :90, :90], predicted[:3, :90, :90]
        pairs = list(zip(*corners, strict=True))
        few = instance_counts(*corners)
        assert AJI(*few.aji_columns) == pytest.approx(np.mean([slow_aji(*p) for p in pairs]))
        pq = np.mean([slow_pq(*pair)[0] for pair in pairs])
        assert PQ_OVER_IMAGES(*few.pq_columns) == pytest.approx(pq)
        assert 0.3 < PQ_POOLED(*counts.pq_columns) < 1
    patient = np.repeat([1, 2, 3, 4], 3)
    interval = cluster_bootstrap(PQ_POOLED, counts.pq_columns, patient, n_resamples=100)
    assert interval.low <= interval.estimate <= interval.high


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"truth": np.zeros((1, 3, 3), bool)}, "truth mask 0 needs an id .* nuclei that touch"),
        ({"predicted": np.zeros((1, 3, 3))}, "predicted mask 0 needs integers; got float64"),
        ({"predicted": np.zeros((1, 3, 4), int)}, "masks 0 need one shape"),
        ({"truth_class": np.zeros((1, 3, 3), int)}, "classes need truth_class, predicted_class"),
        (
            {
                "truth_class": np.zeros((1, 3, 3), int),
                "predicted_class": np.full((1, 3, 3), 5),
                "n_classes": 4,
            },
            "predicted class mask 0 needs classes 0 to 4; got 5",
        ),
    ],
)
def test_instances_refuse(change, match) -> None:
    given = {"truth": np.ones((1, 3, 3), int), "predicted": np.ones((1, 3, 3), int)}
    with pytest.raises(ValueError, match=match):
        instance_counts(**(given | change))
