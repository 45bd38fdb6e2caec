"""What every probe refuses before it does any work."""

# Shape suffixes: N rows (tiles), M train rows, D embedding width, C classes.

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Rows = ArrayLike | Tensor
CHECKED_VALUES = 2**24


def embedding_tensor(
    who: str,
    name: str,
    values: Rows,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Embeddings as a finite, non-empty, contiguous (N, D) tensor; shares memory where it can.

    Args:
        who: Function that asks, for the message.
        name: Its argument, for the message.
        values: (N, D) array or tensor of any real dtype; a tensor is detached.
        device: Where the result lies; by default where a tensor is, and the CPU for an array.
        dtype: Floating type of the result.

    Raises:
        ValueError: If the array is not 2-D, has no row or column, or holds NaN or an infinity.
    """
    if isinstance(values, Tensor):
        tensor = values.detach().to(device=device or values.device, dtype=dtype)
    else:
        with np.errstate(over="ignore"):  # too large for the type becomes inf, refused below
            array = np.asarray(values, dtype=str(dtype).removeprefix("torch."))
        if not array.flags.writeable or any(step < 0 for step in array.strides):
            array = array.copy()
        tensor = torch.from_numpy(array).to(device or "cpu")
    _refuse_shape(who, name, tuple(tensor.shape))
    bad = _rows_not_finite(tensor)
    if len(bad):
        raise ValueError(_not_finite(who, name, bad.tolist(), len(tensor)))
    return tensor.contiguous()


def labels_of(who: str, name: str, values: Rows, *, n_rows: int | None = None) -> NDArray[Any]:
    """Labels, groups or folds as a 1-D numpy array of one value a row.

    Args:
        who: Function that asks, for the message.
        name: Its argument, for the message.
        values: (N,) of anything that can be compared; tensors are brought to the CPU.
        n_rows: N; any number but zero if not given.

    Raises:
        ValueError: If there is not exactly one value a row, or one is missing (NaN or None).
    """
    array = array_of(values)
    if n_rows is None and (array.ndim != 1 or not array.size):
        msg = (
            f"{who}: {name} needs a non-empty list of one value a row; got shape {array.shape}. "
            "Check the split."
        )
        raise ValueError(msg)
    if n_rows is not None and array.shape != (n_rows,):
        msg = (
            f"{who}: {name} needs one value for each of {n_rows} rows; got shape {array.shape}. "
            "Check that rows were dropped from both or from neither."
        )
        raise ValueError(msg)
    missing = _missing(array)
    if len(missing):
        msg = (
            f"{who}: {name} needs a value in each row; got none in {len(missing)} rows, "
            f"the first is row {missing[0]}. Label or drop these rows."
        )
        raise ValueError(msg)
    return array


def class_codes(who: str, train_label_M: Rows, *, n_rows: int) -> tuple[NDArray[Any], Tensor]:
    """The classes of the train side, sorted, and the place of each row's among them.

    Returns:
        class_C: (C,) labels, sorted; C >= 2.
        code_M: (M,) int64 on the CPU, 0 to C - 1.

    Raises:
        ValueError: If labels are unusable, words mixed with numbers, or all of one class.
    """
    label = labels_of(who, "train labels", train_label_M, n_rows=n_rows)
    _refuse_mixture(who, "train labels", label)
    class_C, code_M = np.unique(label, return_inverse=True)
    if len(class_C) < 2:
        msg = (
            f"{who}: the train side needs two classes or more; got only {class_C[0]!r}. "
            "Choose a split that leaves cases of another class for training."
        )
        raise ValueError(msg)
    return class_C, torch.from_numpy(code_M.astype(np.int64))


def train_side(
    who: str,
    train_MD: Rows,
    train_label_M: Rows,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, NDArray[Any], Tensor]:
    """Train embeddings, the classes, and the code of each row's class on the same device.

    Raises:
        ValueError: If an array is unusable, there is one class only, or no feature varies.
    """
    train = embedding_tensor(who, "train", train_MD, device=device, dtype=dtype)
    class_C, code_M = class_codes(who, train_label_M, n_rows=len(train))
    if all_rows_equal(train):
        msg = (
            f"{who}: train needs a feature that varies; got {len(train)} equal rows of width "
            f"{train.shape[1]}. The encoder has collapsed or one tile was embedded many times."
        )
        raise ValueError(msg)
    return train, class_C, code_M.to(train.device)


def all_rows_equal(rows_ND: Tensor) -> bool:
    """Whether every row is the first one; looks at a block of rows at a time."""
    first_1D = rows_ND[:1]
    return all(bool((block == first_1D).all()) for block in _row_blocks(rows_ND))


def same_width(who: str, train_MD: Tensor, test_ND: Tensor) -> None:
    """Refuse two sides whose embeddings are of different widths.

    Raises:
        ValueError: If they are.
    """
    if train_MD.shape[1] != test_ND.shape[1]:
        msg = (
            f"{who}: train and test need embeddings of one width; got {train_MD.shape[1]} and "
            f"{test_ND.shape[1]}. Embed both sides with the same encoder and pooling."
        )
        raise ValueError(msg)


def _refuse_shape(who: str, name: str, shape: tuple[int, ...]) -> None:
    if len(shape) != 2 or 0 in shape:
        msg = (
            f"{who}: {name} needs a non-empty (N, D) array; got shape {shape}. "
            "Give one embedding a row, and at least one row on each side of the split."
        )
        raise ValueError(msg)


def _rows_not_finite(tensor: Tensor) -> NDArray[np.int64]:
    for block in _row_blocks(tensor):
        low, high = block.aminmax()
        if not (low.isfinite() and high.isfinite()):  # aminmax carries NaN through
            bad = [~rows.isfinite().all(dim=1) for rows in _row_blocks(tensor)]
            return torch.cat(bad).nonzero()[:, 0].cpu().numpy()
    return np.empty(0, dtype=np.int64)


def _row_blocks(rows_ND: Tensor) -> tuple[Tensor, ...]:
    return torch.split(rows_ND, max(1, CHECKED_VALUES // rows_ND.shape[1]))


def _not_finite(who: str, name: str, bad: list[int], n_rows: int) -> str:
    return (
        f"{who}: {name} needs finite numbers; got NaN or an infinity in {len(bad)} of "
        f"{n_rows} rows, the first is row {bad[0]}. Embed these tiles again, in float32."
    )


def array_of(values: Rows) -> NDArray[Any]:
    """A numpy array on the CPU; bfloat16 becomes float32, and a gap in a list of text stays one."""
    if isinstance(values, Tensor):
        tensor = values.detach().cpu()
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    array = np.asarray(values)
    if array.dtype.kind in "US" and not hasattr(values, "dtype"):
        kept = np.asarray(values, dtype=object)
        return kept if len(_missing(kept)) else array  # numpy makes text of a NaN among text
    return array


def _refuse_mixture(who: str, name: str, array: NDArray[Any]) -> None:
    if array.dtype.kind != "O":
        return
    try:
        np.sort(array)
    except TypeError:
        kinds = sorted({type(value).__name__ for value in array.tolist()})
        msg = (
            f"{who}: {name} needs values of one kind, that can be sorted; got {', '.join(kinds)}. "
            "Write all of them as words, or all as numbers."
        )
        raise ValueError(msg) from None


def _missing(array: NDArray[Any]) -> NDArray[np.int64]:
    if array.dtype.kind == "f":
        return np.flatnonzero(np.isnan(array))
    if array.dtype.kind in "mM":
        return np.flatnonzero(np.isnat(array))
    if array.dtype.kind != "O":
        return np.empty(0, dtype=np.int64)
    return np.flatnonzero([_is_missing(value) for value in array.tolist()])


def _is_missing(value: object) -> bool:
    """None, NaN, NaT, and pandas' NA, which is neither equal to itself nor not."""
    if value is None:
        return True
    try:
        return bool(value != value)  # noqa: PLR0124
    except TypeError:
        return True
