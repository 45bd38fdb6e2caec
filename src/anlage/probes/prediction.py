"""What a classifier probe gives back."""

# Shape suffixes: N test rows, C classes.

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prediction:
    """Predicted classes of the test rows.

    Attributes:
        label_N: (N,) predicted label of each row, one of ``class_C``.
        score_NC: (N, C) float64, each row sums to 1: probabilities of the linear probe, shares of
            the votes of the kNN probe.
        class_C: (C,) labels of the train side, sorted.
        has_converged: False when the solver stopped at its last iteration.
    """

    label_N: NDArray[Any]
    score_NC: NDArray[np.float64]
    class_C: NDArray[Any]
    has_converged: bool = True
