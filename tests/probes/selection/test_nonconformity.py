import numpy as np
import pytest

from anlage.probes.selection.nonconformity import APS, LAC, Nonconformity, raps

TABLE = np.array([[0.2, 0.5, 0.3], [0.25, 0.25, 0.5], [1.0, 0.0, 0.0]])


def slow_aps(row, u, penalty, n_free):
    """Of each class: sum of likelier ones, its own times u, a penalty for each place too far."""
    order = sorted(range(len(row)), key=lambda c: (-row[c], c))
    oddity = [0.0] * len(row)
    for place, c in enumerate(order):
        oddity[c] = sum(row[d] for d in order[:place]) + u * row[c]
        oddity[c] += penalty * max(0, place + 1 - n_free)
    return oddity


def test_lac_is_one_minus_the_probability() -> None:
    assert LAC.of_classes(TABLE, np.random.default_rng(0)).tolist() == (1 - TABLE).tolist()


@pytest.mark.parametrize("measure", [APS, raps(penalty=0.1, n_free=1), raps(n_free=0)])
def test_aps_is_as_defined(measure, generator) -> None:
    table = np.concatenate([TABLE, generator.dirichlet(np.ones(3), 50)])
    u = np.random.default_rng(4).random(len(table))
    slow = [slow_aps(row, v, measure.penalty, measure.n_free) for row, v in zip(table, u)]  # noqa: B905
    assert measure.of_classes(table, np.random.default_rng(4)) == pytest.approx(np.array(slow))


def test_without_chance_aps_counts_the_class_whole() -> None:
    plain = Nonconformity(kind="aps", is_randomised=False)
    oddity = plain.of_classes(TABLE, np.random.default_rng(0))
    assert oddity[0] == pytest.approx([1.0, 0.5, 0.8])
    assert oddity[1] == pytest.approx([0.75, 1.0, 0.5])


@pytest.mark.parametrize("wrong", [{"kind": "odd"}, {"penalty": -1.0}, {"n_free": -1}])
def test_refuses(wrong) -> None:
    with pytest.raises(ValueError, match="needs kind lac or aps"):
        Nonconformity(**wrong)
