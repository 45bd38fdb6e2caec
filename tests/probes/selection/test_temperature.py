import numpy as np
import pytest
import torch

from anlage.probes.selection.temperature import logits_of_probabilities, temperature_scaling
from anlage.probes.splits.grouped import train_validation_test
from anlage.probes.splits.nested import inner_split
from anlage.probes.splits.split import Split

CLASSES = np.array(["a", "b", "c"])


def drawn(generator, n_groups=60, sharpness=3.0):
    """Labels drawn from a softmax of logits, which are then multiplied by the sharpness."""
    group = np.repeat(np.arange(n_groups), generator.integers(1, 12, n_groups))
    honest = generator.normal(size=(len(group), 3)) + generator.normal(size=(n_groups, 3))[group]
    odds = np.exp(honest)
    point = generator.random(len(group)) * odds.sum(axis=1)
    truth = CLASSES[(point[:, None] > odds.cumsum(axis=1)).sum(axis=1)]
    split = train_validation_test(truth, group, validation=0.5, test=0.25)
    return honest * sharpness, truth, group, split


def slow_nll(logits, truth, temperature, weight=None):
    total, weight = 0.0, np.full(len(truth), 1 / len(truth)) if weight is None else weight
    for row, label, share in zip(logits, truth, weight, strict=True):
        odds = np.exp(row / temperature)
        total -= share * np.log(odds[list(CLASSES).index(label)] / odds.sum())
    return total


@pytest.mark.parametrize("group_counts_once", [False, True])
def test_is_the_best_of_a_fine_grid(generator, group_counts_once) -> None:
    logits, truth, group, split = drawn(generator)
    scaling = temperature_scaling(
        logits, truth, CLASSES, split=split, group_N=group, group_counts_once=group_counts_once
    )
    rows = split.validation
    _, code, count = np.unique(group[rows], return_inverse=True, return_counts=True)
    weight = 1 / (count[code] * len(count)) if group_counts_once else None
    grid = np.geomspace(1, 9, 400)
    nll = [slow_nll(logits[rows], truth[rows], t, weight) for t in grid]
    best = int(np.argmin(nll))
    assert grid[best - 1] < scaling.temperature < grid[best + 1]
    assert scaling.nll_after <= min(nll) + 1e-12
    assert scaling.nll_before == pytest.approx(slow_nll(logits[rows], truth[rows], 1, weight))
    step = 1e-5 * scaling.temperature
    around = [
        slow_nll(logits[rows], truth[rows], scaling.temperature + sign * step, weight)
        for sign in (-1, 1)
    ]
    assert abs(around[1] - around[0]) / (2 * step) < 1e-7  # the slope is zero


def test_finds_the_true_temperature_of_many_rows(generator) -> None:
    logits, truth, group, split = drawn(generator, n_groups=2000, sharpness=3.0)
    scaling = temperature_scaling(logits, truth, CLASSES, split=split, group_N=group)
    assert scaling.temperature == pytest.approx(3.0, rel=0.06)
    assert not scaling.is_at_bound


def test_apply_is_a_softmax_and_keeps_the_order_of_classes(generator) -> None:
    logits, truth, group, split = drawn(generator)
    scaling = temperature_scaling(
        torch.from_numpy(logits), truth, CLASSES, split=split, group_N=group
    )
    test = split.test
    probability = scaling.apply(logits[test], group[test])
    odds = np.exp(logits[test] / scaling.temperature)
    assert probability == pytest.approx(odds / odds.sum(axis=1, keepdims=True))
    assert (probability.argmax(axis=1) == logits[test].argmax(axis=1)).all()
    with pytest.raises(ValueError, match="other patients than those it was chosen on"):
        scaling.apply(logits[split.validation], group[split.validation])


def test_test_and_train_sides_are_not_read(generator) -> None:
    logits, truth, group, split = drawn(generator)
    plain = temperature_scaling(logits, truth, CLASSES, split=split, group_N=group)
    others = np.concatenate([split.train, split.test])
    logits[others], truth[others] = np.nan, "?"
    again = temperature_scaling(logits, truth, CLASSES, split=split, group_N=group)
    assert again == plain


def test_log_probabilities_are_as_good_as_logits(generator) -> None:
    logits, truth, group, split = drawn(generator, sharpness=1.5)
    odds = np.exp(logits)
    logged = logits_of_probabilities(odds / odds.sum(axis=1, keepdims=True), least=1e-12)
    one, two = (
        temperature_scaling(x, truth, CLASSES, split=split, group_N=group) for x in (logits, logged)
    )
    assert one.temperature == pytest.approx(two.temperature, rel=1e-9)
    assert logits_of_probabilities([[0.0, 1.0]])[0].tolist() == pytest.approx([np.log(1e-6), 0])


@pytest.mark.parametrize(("sign", "bound"), [(1, 0.05), (-1, 20.0)])
def test_says_when_the_best_is_out_of_bounds(sign, bound) -> None:
    truth = np.tile(CLASSES, 6)
    logits = sign * np.tile(np.eye(3), (6, 1)) * 10  # all right, or all wrong
    split = Split(name="s", train=np.arange(6), validation=np.arange(6, 12), test=np.arange(12, 18))
    scaling = temperature_scaling(logits, truth, CLASSES, split=split, group_N=np.arange(18))
    assert (scaling.temperature, scaling.is_at_bound) == (bound, True)


def test_real_probabilities_come_closer_to_the_truth(shared_data) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import scale

    data = np.load(shared_data / "embeddings" / "kather2016_texture" / "best3_49.npz")
    rows, truth = scale(data["X"].astype(float))[::8], data["y"][::8]
    group = np.arange(len(truth)) // 2  # tiles of this set name no patient
    outer = train_validation_test(truth, group, validation=0, test=0.3)
    split = inner_split(outer, truth, group, share=0.3)
    model = LogisticRegression(C=100, max_iter=500).fit(rows[split.train], truth[split.train])
    logits = model.decision_function(rows)
    scaling = temperature_scaling(logits, truth, model.classes_, split=split, group_N=group)
    assert scaling.temperature > 1.2  # an overfitted model is overconfident

    def nll(probability):
        code = np.searchsorted(model.classes_, truth[split.test])
        return -np.log(probability[np.arange(len(code)), code]).mean()

    calibrated = nll(scaling.apply(logits[split.test], group[split.test]))
    assert calibrated < nll(model.predict_proba(rows[split.test])) - 0.02


def scaled(**changes):
    logits, truth, group, split = drawn(np.random.default_rng(0))
    given = {"logits": logits, "truth": truth, "classes": CLASSES, "split": split, "group": group}
    given |= {name: change(given) for name, change in changes.items()}
    return temperature_scaling(
        given["logits"],
        given["truth"],
        given["classes"],
        split=given["split"],
        group_N=given["group"],
    )


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"logits": lambda g: g["logits"] * np.nan}, "logits needs finite numbers"),
        ({"logits": lambda g: g["logits"][:, :2]}, "one column for each of 3 classes"),
        ({"logits": lambda g: g["logits"][:9]}, "logits needs all"),
        ({"truth": lambda g: np.full(len(g["truth"]), "a")}, "two classes or more"),
        ({"classes": lambda g: ["a", "b", "d"]}, "got \\['c'\\]"),
        ({"group": lambda g: np.zeros(len(g["group"]))}, "one side only"),
        (
            {"split": lambda g: Split(name="s", train=g["split"].train, test=g["split"].test)},
            "split s has none",
        ),
    ],
)
def test_refuses(changes, match) -> None:
    with pytest.raises(ValueError, match=match):
        scaled(**changes)


def test_refuses_what_is_no_probability() -> None:
    with pytest.raises(ValueError, match="softmax"):
        logits_of_probabilities([[2.0, 1.0]])
    with pytest.raises(ValueError, match="least"):
        logits_of_probabilities([[0.5, 0.5]], least=0)
