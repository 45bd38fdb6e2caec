"""A tenth of the train side held out for choosing, where a protocol has no validation side."""

# Shape suffixes: M train rows, C classes.

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anlage.probes.checks import Rows, labels_of
from anlage.probes.splits.grouped import grouped_folds

N_FOLDS = 10  # one of them is held out


def tenth_held_out(
    who: str, code_M: Tensor, group_M: Rows | None, *, class_C: NDArray[Any], seed: int
) -> tuple[Tensor, Tensor]:
    """Rows to train on, and a tenth of all to choose by.

    Without groups a tenth of the rows of each class is drawn. With groups it is the first of ten
    grouped folds (of as many as there are groups, if fewer) that leaves every class in training.

    Args:
        who: Function that asks, for the message.
        code_M: (M,) int64 classes.
        group_M: (M,) patients, or nothing.
        class_C: (C,) labels of the codes.
        seed: Of the draw.

    Returns:
        kept: Rising int64 rows on the device of the codes.
        held: The others; both have one row or more.

    Raises:
        ValueError: If too few rows or patients are there to hold some out.
    """
    code = code_M.cpu().numpy()
    if group_M is None:
        held = _tenth_of_each_class(who, code, seed=seed)
    else:
        group = labels_of(who, "groups", group_M, n_rows=len(code))
        held = _tenth_of_groups(who, code, group, class_C=class_C, seed=seed)
    is_held = np.zeros(len(code), dtype=bool)
    is_held[held] = True
    kept, held = np.flatnonzero(~is_held), np.flatnonzero(is_held)
    device = code_M.device
    return torch.from_numpy(kept).to(device), torch.from_numpy(held).to(device)


def _tenth_of_each_class(who: str, code_M: NDArray[np.int64], *, seed: int) -> NDArray[np.int64]:
    rng = np.random.default_rng(seed)
    held = []
    for code in range(int(code_M.max()) + 1):
        rows = rng.permutation(np.flatnonzero(code_M == code))
        held.append(rows[: round(len(rows) / N_FOLDS)])
    if not sum(map(len, held)):
        msg = (
            f"{who}: a tenth of the train rows is held out, which needs a class of 6 rows or more; "
            f"got {len(code_M)} rows. Give validation=(embeddings, labels)."
        )
        raise ValueError(msg)
    return np.concatenate(held)


def _tenth_of_groups(
    who: str,
    code_M: NDArray[np.int64],
    group_M: NDArray[Any],
    *,
    class_C: NDArray[Any],
    seed: int,
) -> NDArray[np.int64]:
    for code, label in enumerate(class_C.tolist()):
        groups = np.unique(group_M[code_M == code])
        if len(groups) == 1:
            msg = (
                f"{who}: every class needs rows of two patients or more, so that one can be held "
                f"out; got only {groups.tolist()[0]!r} in class {label!r}. Leave the class out, or "
                "give validation=(embeddings, labels)."
            )
            raise ValueError(msg)
    n_folds = min(N_FOLDS, len(np.unique(group_M)))
    # Every class has two groups or more here, so that grouped_folds puts it into two folds.
    folds = grouped_folds(code_M, group_M, n_folds=n_folds, seed=seed)
    n_classes = [len(np.unique(code_M[fold.train])) for fold in folds]
    return folds[n_classes.index(len(class_C))].test
