"""How often each slide of a catalogue is drawn: balanced over any of its columns.

Shape suffixes: S slides.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from anlage.slides.catalogue import Catalogue

Floats = NDArray[np.float64]
Base = Literal["slide", "tissue_area"]


def base_weights(catalogue: Catalogue, base: Base, *, min_tissue: float) -> Floats:
    """Weights before balancing, (S,) float64 >= 0.

    Args:
        catalogue: The slides.
        base: ``slide``: each counts the same; ``tissue_area``: each by its tissue, so that every
            piece of tissue does.
        min_tissue: Smallest tissue fraction of a tile; above 0, slides without tissue weigh 0.

    Raises:
        ValueError: If there is no such base.
    """
    if base not in get_args(Base):
        msg = (
            f"base_weights: needs a base of {' or '.join(get_args(Base))}; got {base!r}. "
            "Say slide to count every slide the same."
        )
        raise ValueError(msg)
    area_S = catalogue.column("tissue_area_mm2").to_numpy()
    if base == "tissue_area":
        return np.asarray(area_S, dtype=np.float64)
    return np.asarray(area_S > 0 if min_tissue > 0 else np.ones(len(area_S)), dtype=np.float64)


def balanced(weight_S: Floats, catalogue: Catalogue, axes: Mapping[str, float]) -> Floats:
    """Weights balanced over columns: divided by frequency ** alpha, for every axis.

    The frequency of a value is its share of the draws before balancing; nulls are a value of their
    own. With alpha 1 on one axis its values are equally likely, with 0 nothing changes.

    Args:
        weight_S: (S,) weights before balancing, >= 0.
        catalogue: The slides.
        axes: Alpha, 0 to 1, of each column.

    Returns:
        (S,) float64.

    Raises:
        ValueError: If an alpha is out of range or a column is not there.
    """
    balanced_S = weight_S.astype(np.float64)
    for column, alpha in axes.items():
        _refuse_unfit_axis(catalogue, column, alpha)
        if alpha == 0:
            continue
        code_S, n_values = catalogue.column_codes(column)
        share = np.bincount(code_S, weight_S, minlength=n_values) / max(weight_S.sum(), 1e-300)
        factor = np.where(share > 0, share, 1.0) ** -alpha
        balanced_S *= factor[code_S]
    return balanced_S


def _refuse_unfit_axis(catalogue: Catalogue, column: str, alpha: float) -> None:
    known = catalogue.column_names
    if column not in known:
        near = difflib.get_close_matches(column, known, n=1)
        remedy = f"Did you mean {near[0]!r}?" if near else f"It has {', '.join(known)}."
        msg = f"balance: needs columns of {catalogue.path}; got {column!r}. {remedy}"
        raise ValueError(msg)
    if not 0 <= alpha <= 1:
        msg = (
            f"balance: needs an alpha from 0 to 1; got {alpha} for {column!r}. "
            "0 leaves the column alone, 1 makes its values equally likely."
        )
        raise ValueError(msg)
