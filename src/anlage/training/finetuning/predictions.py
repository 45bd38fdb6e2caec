"""Predictions of a fold's validation and test slides, as they are stored.

Shape suffixes: N slides, P numbers of a prediction.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from anlage.errors import CheckpointError
from anlage.files import replace_whole
from anlage.training.finetuning.scores import predicted_code
from anlage.training.finetuning.targets import Targets

FORMAT = b"finetune-predictions/1"
FORMAT_KEY, EDGES_KEY = b"anlage.format", b"anlage.edges"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FoldPredictions:
    """What the model of a fold says of slides that it was not trained on.

    Attributes:
        fold: Name of the fold.
        targets: The task's slides.
        rows: (N,) which of them.
        side_N: (N,) ``val`` or ``test``.
        score_NP: (N, P) float64 scores.
        score_names: What they are.
        edges: Inner edges of the fold's intervals of time; ``survival_1`` is of the first.
    """

    fold: str
    targets: Targets
    rows: NDArray[np.int64]
    side_N: NDArray[np.str_]
    score_NP: NDArray[np.float64]
    score_names: tuple[str, ...]
    edges: tuple[float, ...] = ()

    def of_side(self, side: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Rows of a side, and their scores."""
        is_there = self.side_N == side
        return self.rows[is_there], self.score_NP[is_there]

    def table(self) -> pa.Table:
        """One row a slide."""
        targets, rows = self.targets, self.rows
        columns: dict[str, Any] = {
            "slide_id": [targets.slide_ids[row] for row in rows],
            "patient_id": targets.patient_N[rows].tolist(),
            "fold": [self.fold] * len(rows),
            "side": self.side_N.tolist(),
            **_truth(targets, rows),
        }
        if targets.task.kind in {"binary", "multi_class", "ordinal"}:
            code_N = predicted_code(targets.task.kind, self.score_NP)
            columns["predicted"] = [targets.classes[code] for code in code_N]
        columns |= dict(zip(self.score_names, self.score_NP.T, strict=True))
        return pa.table(columns)


def write_predictions(path: Path, fold: FoldPredictions) -> None:
    """Write the predictions of a fold, whole or not at all."""
    _write(path, fold.table(), {fold.fold: list(fold.edges)} if fold.edges else {})


def join_predictions(path: Path, files: Sequence[Path]) -> None:
    """Write the predictions of several folds below each other, whole or not at all."""
    tables = [pq.read_table(file) for file in files]
    edges: dict[str, list[float]] = {}
    for table in tables:
        edges |= json.loads((table.schema.metadata or {}).get(EDGES_KEY, b"{}"))
    _write(path, pa.concat_tables([t.replace_schema_metadata() for t in tables]), edges)


def _write(path: Path, table: pa.Table, edges: dict[str, list[float]]) -> None:
    metadata = {FORMAT_KEY: FORMAT} | ({EDGES_KEY: json.dumps(edges).encode()} if edges else {})
    with replace_whole(path) as beside:
        pq.write_table(table.replace_schema_metadata(metadata), beside)


def read_predictions(path: Path, targets: Targets) -> FoldPredictions:
    """The predictions of one fold as they were written.

    Raises:
        CheckpointError: If the file is damaged, or is not of these slides.
    """
    try:
        table = pq.read_table(path)
        row_of = {slide_id: row for row, slide_id in enumerate(targets.slide_ids)}
        rows = [row_of[slide_id] for slide_id in table["slide_id"].to_pylist()]
        names = tuple(table.column_names[_n_other_columns(targets) :])
        scores = [table[name].to_numpy() for name in names]
        return FoldPredictions(
            fold=str(table["fold"][0]) if len(table) else "",
            targets=targets,
            rows=np.array(rows, dtype=np.int64),
            side_N=np.array(table["side"].to_pylist(), dtype=str),
            score_NP=np.stack(scores, axis=1),
            score_names=names,
        )
    except (OSError, KeyError, IndexError, ValueError, pa.ArrowException) as error:
        message = f"is damaged ({error}). Delete the fold's folder to train it anew."
        raise CheckpointError(path, message) from error


def _n_other_columns(targets: Targets) -> int:
    n_truth = len(_truth(targets, np.empty(0, dtype=np.int64)))
    return 4 + n_truth + (targets.task.kind in {"binary", "multi_class", "ordinal"})


def _truth(targets: Targets, rows: NDArray[np.int64]) -> dict[str, Any]:
    target_NK, kind = targets.target_NK[rows], targets.task.kind
    if kind in {"binary", "multi_class", "ordinal"}:
        return {"truth": [targets.classes[int(code)] for code in target_NK[:, 0]]}
    if kind == "multi_label":
        return {
            f"truth_{name}": pa.array(target_N, from_pandas=True)
            for name, target_N in zip(targets.classes, target_NK.T, strict=True)
        }
    if kind == "regression":
        return {"truth": target_NK[:, 0]}
    return {"time": target_NK[:, 0], "event": target_NK[:, 1].astype(np.int64)}
