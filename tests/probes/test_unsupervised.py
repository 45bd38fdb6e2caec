import numpy as np
import pytest

from anlage.probes.unsupervised import rankme


def test_known_ranks(generator) -> None:
    assert rankme(3 * np.eye(7)) == pytest.approx(7, rel=1e-4)
    assert rankme(np.outer(generator.random(30) + 1, generator.random(5))) == pytest.approx(
        1, abs=1e-4
    )
    two = np.diag([3.0, 1.0])
    assert rankme(two) == pytest.approx(np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25))), 1e-5)


def test_is_the_formula_from_the_gram_matrix(generator) -> None:
    embedding = generator.normal(size=(80, 10)) @ np.diag(np.arange(1.0, 11))
    singular = np.sqrt(np.linalg.eigvalsh(embedding.T @ embedding))
    p = singular / singular.sum() + 1e-7
    assert rankme(embedding) == pytest.approx(np.exp(-(p * np.log(p)).sum()))


def test_is_bounded_and_ignores_scale_and_rotation(generator) -> None:
    embedding = generator.normal(size=(50, 8))
    rotation = np.linalg.qr(generator.normal(size=(8, 8)))[0]
    assert 1 <= rankme(embedding) <= 8.001
    assert rankme(1000 * embedding @ rotation) == pytest.approx(rankme(embedding))


def test_zeros_span_no_direction() -> None:
    assert rankme(np.zeros((3, 2))) == 0


def test_refuses() -> None:
    with pytest.raises(ValueError, match="NaN"):
        rankme([[np.nan, 1.0]])
