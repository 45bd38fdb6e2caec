"""How odd each class would be for a row, the measure that conformal sets cut off."""

# Shape suffixes: N rows, C classes.

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Nonconformity:
    """A measure of oddity; ``LAC``, ``APS`` and ``raps`` make the usual ones.

    - ``lac``: 1 - probability of the class. Smallest sets on average; some may be empty.
    - ``aps``: probability of all likelier classes + u * that of the class, u uniform in [0, 1).
      Larger for doubtful rows, so that coverage is more even between easy and hard ones.
      ``penalty`` adds to it, for each place of the class beyond ``n_free`` in the order of
      likelihood (RAPS), which cuts the long tails of sets of many classes.

    Attributes:
        kind: ``lac`` or ``aps``.
        penalty: Of ``aps``, 0 or more.
        n_free: Places without penalty, 0 or more.
        is_randomised: Whether u is drawn; otherwise it is 1, and ``aps`` covers more than asked.

    Source: Sadinle et al. 2019, Least ambiguous set-valued classifiers, arXiv:1609.00451;
        Romano et al. 2020, Classification with valid and adaptive coverage, arXiv:2006.02544;
        Angelopoulos et al. 2021, Uncertainty sets for image classifiers, arXiv:2009.14193.
    """

    kind: Literal["lac", "aps"] = "lac"
    penalty: float = 0.0
    n_free: int = 0
    is_randomised: bool = True

    def __post_init__(self) -> None:
        is_known = self.kind in {"lac", "aps"}
        if not is_known or not (0 <= self.penalty < np.inf and self.n_free >= 0):
            msg = (
                "Nonconformity: needs kind lac or aps, a finite penalty >= 0 and n_free >= 0; got "
                f"{self.kind!r}, {self.penalty} and {self.n_free}. Use LAC, APS or raps()."
            )
            raise ValueError(msg)

    def of_classes(
        self, probability_NC: NDArray[np.float64], generator: np.random.Generator
    ) -> NDArray[np.float64]:
        """(N, C) float64 oddity of each class for each row; one u a row is drawn for ``aps``.

        Args:
            probability_NC: (N, C) probabilities; of equal ones the first column counts as likelier.
            generator: Source of u.
        """
        if self.kind == "lac":
            return 1 - probability_NC
        u_N1 = np.ones((len(probability_NC), 1))
        if self.is_randomised:
            u_N1 = generator.random((len(probability_NC), 1))
        order_NC = np.argsort(-probability_NC, axis=1, kind="stable")
        falling_NC = np.take_along_axis(probability_NC, order_NC, axis=1)
        likelier_NC = falling_NC.cumsum(axis=1) - falling_NC
        beyond_C = np.maximum(0, np.arange(1, probability_NC.shape[1] + 1) - self.n_free)
        oddity_NC = np.empty_like(probability_NC)
        np.put_along_axis(
            oddity_NC,
            order_NC,
            likelier_NC + u_N1 * falling_NC + self.penalty * beyond_C,
            axis=1,
        )
        return oddity_NC


LAC = Nonconformity(kind="lac")
APS = Nonconformity(kind="aps")


def raps(*, penalty: float = 0.01, n_free: int = 5) -> Nonconformity:
    """APS with a penalty on unlikely classes; the defaults are of the size the source tunes to.

    Raises:
        ValueError: If a setting is negative.
    """
    return Nonconformity(kind="aps", penalty=penalty, n_free=n_free)
