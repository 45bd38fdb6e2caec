"""What every probe refuses, and the kinds of arrays that it takes."""

import numpy as np
import pandas as pd
import pytest
import torch

from anlage.probes import checks
from anlage.probes.checks import (
    all_rows_equal,
    class_codes,
    embedding_tensor,
    labels_of,
    train_side,
)

ROWS = np.arange(24, dtype=np.float32).reshape(6, 4)


@pytest.mark.parametrize(
    "labels",
    [
        ["a", float("nan"), "b"],
        ("a", None, "b"),
        [1, None, 2],
        [0.0, np.nan, 1.0],
        np.array(["a", np.nan, "b"], dtype=object),
        pd.Series(["a", None, "b"]),
        pd.Series(["a", pd.NA, "b"], dtype="string"),
        pd.Series([0, pd.NA, 1], dtype="Int64"),
        np.array(["2024-01-01", "NaT", "2024-01-02"], dtype="datetime64[D]"),
        torch.tensor([0.0, float("nan"), 1.0]),
    ],
    ids=lambda labels: f"{type(labels).__name__} of {getattr(labels, 'dtype', 'any')}",
)
def test_a_missing_label_is_named_and_never_becomes_a_class(labels) -> None:
    with pytest.raises(ValueError, match="probe: labels needs a value in each row; got none in 1"):
        labels_of("probe", "labels", labels, n_rows=3)


@pytest.mark.parametrize(
    "labels",
    [["nan", "b"], np.array(["nan", "b"]), ["None", ""], [3, 1], torch.tensor([3, 1])],
)
def test_words_and_numbers_stay_what_they_are(labels) -> None:
    expected = labels.tolist() if hasattr(labels, "tolist") else labels
    assert labels_of("probe", "labels", labels, n_rows=2).tolist() == expected


def test_embeddings_of_every_kind_are_read_alike(tmp_path) -> None:
    np.save(tmp_path / "rows.npy", ROWS)
    read_only = ROWS.copy()
    read_only.flags.writeable = False
    for given in (
        ROWS.astype(np.float64),
        ROWS.astype(np.float16),
        ROWS.astype(">f4"),
        ROWS.astype(np.int16),
        np.asfortranarray(ROWS),
        ROWS[::-1][::-1],
        np.repeat(ROWS, 2, axis=1)[:, ::2],
        read_only,
        np.load(tmp_path / "rows.npy", mmap_mode="r"),
        ROWS.tolist(),
        torch.from_numpy(ROWS).bfloat16(),
        torch.from_numpy(ROWS).T.contiguous().T.requires_grad_(),
    ):
        tensor = embedding_tensor("probe", "rows", given)
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()
        assert not tensor.requires_grad
        np.testing.assert_array_equal(tensor, ROWS)
    assert np.shares_memory(embedding_tensor("probe", "rows", ROWS).numpy(), ROWS)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e200])
def test_the_first_bad_row_is_named_whatever_the_block(bad, monkeypatch) -> None:
    monkeypatch.setattr(checks, "CHECKED_VALUES", 8)
    rows = ROWS.astype(np.float64)
    rows[[3, 5], 2] = bad
    with pytest.raises(ValueError, match="infinity in 2 of 6 rows, the first is row 3"):
        embedding_tensor("probe", "rows", rows)


def test_equal_rows_are_seen_in_any_block(monkeypatch) -> None:
    monkeypatch.setattr(checks, "CHECKED_VALUES", 8)
    equal = torch.ones(7, 4)
    assert all_rows_equal(equal)
    equal[6, 3] = 2
    assert not all_rows_equal(equal)
    with pytest.raises(ValueError, match="needs a feature that varies; got 5 equal rows"):
        train_side("probe", equal[:5], [0, 1, 0, 1, 0])


def test_words_beside_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="labels needs values of one kind.*got int, str. Write"):
        class_codes("probe", np.array([1, "a", 2], dtype=object), n_rows=3)


def test_labels_of_half_precision_are_read() -> None:
    labels = torch.tensor([2, 0, 1]).bfloat16()
    assert labels_of("probe", "labels", labels, n_rows=3).tolist() == [2, 0, 1]
