import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from anlage.probes.metrics.ranking import AUPRC, AUPRC_MACRO, AUROC, AUROC_OVO, AUROC_OVR
from reference.gathered_rows import on_gathered_rows, resample_weights

# N rows, C classes, G groups, R weightings.
N_GROUPS = 15


def scores_of(generator, n_classes, *, n_rows=400, decimals=None):
    """Probabilities that know something; rounded, most rows are tied."""
    truth = generator.integers(0, n_classes, n_rows)
    logit = generator.normal(size=(n_rows, n_classes))
    logit[np.arange(n_rows), truth] += 1
    score = np.exp(logit) / np.exp(logit).sum(axis=1, keepdims=True)
    if decimals is not None:  # rows still sum to 1
        score = score.round(decimals)
        score[:, -1] = 1 - score[:, :-1].sum(axis=1)
    return truth, score, generator.integers(0, N_GROUPS, n_rows)


BINARY = [(AUROC, roc_auc_score), (AUPRC, average_precision_score)]


@pytest.mark.parametrize(("metric", "expected"), BINARY, ids=["auroc", "auprc"])
@pytest.mark.parametrize("decimals", [None, 2, 1, 0])
def test_binary_areas_are_scikit_learns(metric, expected, decimals, generator) -> None:
    truth, score, group = scores_of(generator, 2, decimals=decimals)
    columns = (truth, score[:, 1])
    assert metric(*columns) == pytest.approx(expected(*columns), abs=1e-12)
    weight_RG = resample_weights(generator, N_GROUPS, 30)
    got = metric.over_groups(columns, group, N_GROUPS)(weight_RG)
    np.testing.assert_allclose(
        got, on_gathered_rows(expected, columns, group, weight_RG), atol=1e-12
    )


@pytest.mark.parametrize(("metric", "expected"), BINARY, ids=["auroc", "auprc"])
@pytest.mark.parametrize("decimals", [None, 1])
def test_fractional_weights_are_sample_weights(metric, expected, decimals, generator) -> None:
    truth, score, group = scores_of(generator, 2, decimals=decimals)
    weight_RG = generator.random((4, N_GROUPS))
    weight_RG[0, :5] = 0
    got = metric.over_groups((truth, score[:, 1]), group, N_GROUPS)(weight_RG)
    slow = [expected(truth, score[:, 1], sample_weight=weight[group]) for weight in weight_RG]
    np.testing.assert_allclose(got, slow, atol=1e-12)


def one_hot_precision(truth, score):
    return average_precision_score(np.eye(score.shape[1])[truth], score)


MULTICLASS = [
    (AUROC_OVR, lambda truth, score: roc_auc_score(truth, score, multi_class="ovr")),
    (AUROC_OVO, lambda truth, score: roc_auc_score(truth, score, multi_class="ovo")),
    (AUPRC_MACRO, one_hot_precision),
]


@pytest.mark.parametrize(("metric", "expected"), MULTICLASS, ids=lambda m: getattr(m, "name", ""))
@pytest.mark.parametrize("decimals", [None, 2, 1])
def test_areas_of_classes_are_scikit_learns(metric, expected, decimals, generator) -> None:
    truth, score, group = scores_of(generator, 5, decimals=decimals)
    assert metric(truth, score) == pytest.approx(expected(truth, score), abs=1e-12)
    weight_RG = resample_weights(generator, N_GROUPS, 10)
    got = metric.over_groups((truth, score), group, N_GROUPS)(weight_RG)
    slow = on_gathered_rows(expected, (truth, score), group, weight_RG)
    np.testing.assert_allclose(got, slow, atol=1e-12)


@pytest.mark.parametrize("metric", [AUROC, AUPRC], ids=lambda m: m.name)
def test_every_row_its_own_group_in_blocks(metric, generator, monkeypatch) -> None:
    truth, score, _ = scores_of(generator, 2, n_rows=120, decimals=1)
    columns, group = (truth, score[:, 1]), np.arange(120)
    weight_RG = resample_weights(generator, 120, 9)
    whole = metric.over_groups(columns, group, 120)(weight_RG)
    monkeypatch.setattr("anlage.probes.metrics.group_sums.BLOCK_CELLS", 20)
    blocks = metric.over_groups(columns, group, 120)(weight_RG)
    np.testing.assert_array_equal(blocks, whole)
    expected = dict(BINARY_BY_NAME)[metric.name]
    np.testing.assert_allclose(whole, on_gathered_rows(expected, columns, group, weight_RG))


BINARY_BY_NAME = [(metric.name, expected) for metric, expected in BINARY]


def slow_auroc(positive, score):
    """All pairs."""
    ahead = score[positive][:, None] - score[~positive]
    return ((ahead > 0) + (ahead == 0) / 2).mean() if positive.any() and (~positive).any() else None


def test_class_absent_under_weights_is_left_out(generator) -> None:
    """scikit-learn refuses these resamples: the mean is over the classes that remain."""
    truth, score, group = scores_of(generator, 4)
    truth[group < 2], truth[(group >= 2) & (truth == 3)] = 3, 2
    weight_RG = resample_weights(generator, N_GROUPS, 20)
    weight_RG[:5, :2] = 0

    def mean_of_present(truth, score):
        areas = [slow_auroc(truth == c, score[:, c]) for c in np.unique(truth)]
        return np.mean(areas)

    def mean_of_pairs(truth, score):
        present = np.unique(truth)
        pairs = [(c, d) for c in present for d in present if c != d]
        rows = {(c, d): np.isin(truth, (c, d)) for c, d in pairs}
        return np.mean([slow_auroc(truth[rows[c, d]] == c, score[rows[c, d], c]) for c, d in pairs])

    for metric, slow in ((AUROC_OVR, mean_of_present), (AUROC_OVO, mean_of_pairs)):
        got = metric.over_groups((truth, score), group, N_GROUPS)(weight_RG)
        expected = on_gathered_rows(slow, (truth, score), group, weight_RG)
        np.testing.assert_allclose(got, expected, atol=1e-12)


def test_no_value_under_weights_that_leave_one_class(generator) -> None:
    truth, score = np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8])
    weight_RG = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    auroc = AUROC.over_groups((truth, score), truth, 2)(weight_RG)
    np.testing.assert_array_equal(auroc, [np.nan, np.nan, 0.75, np.nan])
    auprc = AUPRC.over_groups((truth, score), truth, 2)(weight_RG)
    np.testing.assert_allclose(auprc, [np.nan, 1, 0.8333333333, np.nan])
    both = np.stack([1 - score, score], axis=1)
    ovr = AUROC_OVR.over_groups((truth, both), truth, 2)(weight_RG)
    np.testing.assert_array_equal(ovr, [np.nan, np.nan, 0.75, np.nan])


def test_known_values() -> None:
    """scikit-learn's own examples, perfection, reversal, and chance when all is tied."""
    truth = [False, False, True, True]
    assert AUROC(truth, [0.1, 0.4, 0.35, 0.8]) == 0.75
    assert AUPRC(truth, [0.1, 0.4, 0.35, 0.8]) == pytest.approx(0.8333333333)
    assert AUROC(truth, [1, 2, 3, 4]) == AUPRC(truth, [1, 2, 3, 4]) == 1
    assert AUROC(truth, [4, 3, 2, 1]) == 0
    assert AUROC(truth, [7, 7, 7, 7]) == AUPRC(truth, [7, 7, 7, 7]) == 0.5


def test_precision_of_the_score_and_tensors_do_not_matter(generator) -> None:
    truth, score, _ = scores_of(generator, 3)
    value = AUROC_OVO(truth, score.astype(np.float32))
    assert value == pytest.approx(AUROC_OVO(truth, score), abs=1e-12)
    assert AUROC_OVO(torch.from_numpy(truth), torch.from_numpy(score)) == AUROC_OVO(truth, score)


def test_class_of_the_head_that_the_test_side_lacks_is_left_out(generator) -> None:
    truth, score, _ = scores_of(generator, 4)
    rows = truth != 2
    seen = [roc_auc_score(truth[rows] == c, score[rows, c]) for c in (0, 1, 3)]
    assert AUROC_OVR(truth[rows], score[rows]) == pytest.approx(np.mean(seen), abs=1e-12)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: AUROC([1, 1], [0.2, 0.3]), "positive and negative rows; got 2 positive of 2"),
        (lambda: AUPRC([0, 0], [0.2, 0.3]), "got 0 positive of 2"),
        (lambda: AUROC(["a", "b"], [0.2, 0.3]), r"needs 0 and 1.*\['a', 'b'\]"),
        (lambda: AUROC([1, 2], [0.2, 0.3]), r"needs 0 and 1.*\[1, 2\]"),
        (lambda: AUROC([0, 1], [0.2, np.nan]), "NaN or an infinity in 1 of 2 rows"),
        (lambda: AUROC([0, 1], [[0.2, 0.8], [0.3, 0.7]]), r"score\[:, 1\]"),
        (lambda: AUROC([0, 1], ["x", "y"]), "score needs numbers"),
        (lambda: AUROC([0, 1, 1], [0.2, 0.3]), "each of 3 rows"),
        (lambda: AUROC_OVR([0, 3], [[0.2, 0.8], [0.3, 0.7]]), "0 to 1; got the labels"),
        (lambda: AUROC_OVR(["a", "b"], [[0.2, 0.8], [0.3, 0.7]]), "truth_codes"),
        (lambda: AUROC_OVO([1, 1], [[0.2, 0.8], [0.3, 0.7]]), "got only class 1"),
        (lambda: AUPRC_MACRO([0, 1], [0.2, 0.8]), "column for each of two classes"),
        (lambda: AUPRC_MACRO([0, 1], [[0.2, np.inf], [0.3, 0.7]]), "first is row 0"),
    ],
)
def test_refuses(call, match) -> None:
    with pytest.raises(ValueError, match=match):
        call()
