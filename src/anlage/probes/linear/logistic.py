"""The linear probe: logistic regression on frozen embeddings."""

# Shape suffixes: M train rows, N test rows, D embedding width.

from __future__ import annotations

import logging
import warnings

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from anlage.probes.checks import embedding_tensor, same_width, train_side
from anlage.probes.prediction import Prediction

LOGGER = logging.getLogger(__name__)
MAX_ITERATIONS = 1000


def linear_probe(
    train_MD: ArrayLike,
    train_label_M: ArrayLike,
    test_ND: ArrayLike,
    *,
    cost: float = 0.1,
    balance_classes: bool = False,
) -> Prediction:
    """Class of each test row by L2-regularised multinomial logistic regression.

    Features are standardised with the mean and deviation of the train side (a constant one is
    only centred). L-BFGS from zero weights in float64 minimises

        cost * sum_i w(y_i) * cross_entropy_i + |W|^2 / 2

    Args:
        train_MD: (M, D) embeddings of the train side.
        train_label_M: (M,) their labels, strings or integers.
        test_ND: (N, D) embeddings of the test side.
        cost: Weight of the data against the penalty, > 0 (scikit-learn's ``C``).
        balance_classes: Weigh a class by M / (n_classes * its rows) instead of by 1.

    Returns:
        Predicted labels and probabilities.

    Raises:
        ValueError: If an array is unusable, the train side has one class, or cost is not > 0.

    Source: the protocol of Chen et al. 2024, UNI, arXiv:2308.15474, in scikit-learn's objective.
    Their code divides by the number of rows and does not square the norm.
    """
    train_tensor, class_C, code_M = train_side(
        "linear_probe", train_MD, train_label_M, dtype=torch.float64
    )
    test_tensor = embedding_tensor("linear_probe", "test", test_ND, dtype=torch.float64)
    same_width("linear_probe", train_tensor, test_tensor)
    train, test, label = train_tensor.numpy(), test_tensor.numpy(), class_C[code_M.numpy()]
    if not (np.isfinite(cost) and cost > 0):
        msg = f"linear_probe: cost needs to be finite and > 0; got {cost}. Try 0.1."
        raise ValueError(msg)
    scaler = StandardScaler().fit(train)
    classifier = LogisticRegression(
        C=cost, max_iter=MAX_ITERATIONS, class_weight="balanced" if balance_classes else None
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        classifier.fit(scaler.transform(train), label)
    has_converged = True
    for item in caught:
        if issubclass(item.category, ConvergenceWarning):
            has_converged = False
        else:
            warnings.warn_explicit(item.message, item.category, item.filename, item.lineno)
    if not has_converged:
        LOGGER.warning("linear_probe: not converged after %d iterations", MAX_ITERATIONS)
    scaled_test = scaler.transform(test)
    return Prediction(
        label_N=classifier.predict(scaled_test),
        score_NC=classifier.predict_proba(scaled_test),
        class_C=classifier.classes_,
        has_converged=has_converged,
    )
