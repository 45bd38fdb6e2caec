"""Evaluate a frozen tile encoder on labelled tiles, beside its floors."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from anlage.encoders.leakage import seen_in_pretraining
from anlage.encoders.open_encoder import open_encoder
from anlage.encoders.tile_encoder import TileEncoder
from anlage.errors import LabelledDataError
from anlage.evaluation.features import TileFeatures, tile_features
from anlage.evaluation.labelled_tiles import LabelledTiles
from anlage.evaluation.notes import (
    comparison_notes,
    grouping_notes,
    leakage_note,
    split_notes,
    technical_notes,
)
from anlage.evaluation.protocol import (
    Protocol,
    chosen_protocol,
    never_trained_on,
    splits_of,
    splits_of_file,
)
from anlage.evaluation.result import (
    ClassCount,
    Data,
    EvaluationResult,
    evaluation_key,
    read_result,
    write_result,
)
from anlage.evaluation.scoring import Predictions, comparisons_of, predict, scores_of
from anlage.evaluation.split_files import write_splits
from anlage.files import replace_whole
from anlage.probes.splits.split import Split
from anlage.probes.splits.tables import KEY_COLUMNS
from anlage.probes.unsupervised import rankme
from anlage.provenance import git_commit, versions

LOGGER = logging.getLogger(__name__)
PREDICTIONS_FORMAT = b"predictions/1"
SPLITS = "splits.csv"


def evaluate_encoder(
    encoder: TileEncoder | str | Path,
    data: LabelledTiles | str | Path,
    output: str | Path,
    *,
    seed: int = 0,
    n_resamples: int = 2000,
    protocol: Protocol = "auto",
    splits: str | Path | None = None,
    k: int = 20,
    cost: float = 0.1,
    batch_size: int = 64,
    device: str = "cpu",
    trust_remote_code: bool = False,
) -> EvaluationResult:
    """Score an encoder with a linear and a kNN probe, beside what needs no pretraining.

    The floors are the same architecture with random weights, and colour and texture statistics.
    All models see the same pixels, splits and resamples. Writes ``splits.csv`` (which ``splits``
    takes), ``predictions.parquet`` (one row a tested tile), then ``result.json``; if that is there
    for the same encoder, data and settings it is returned as it is.

    Args:
        encoder: The encoder, its folder, or whatever else ``open_encoder`` takes.
        data: Labelled tiles, or the CSV or folder ``LabelledTiles.open`` reads.
        output: Folder for the files.
        seed: Of the untrained floor, the resamples and ``grouped-folds``.
        n_resamples: Bootstrap resamples of groups.
        protocol: How to split; ``auto`` takes the folds given, else leaves one group out (up to
            100 groups), else makes five folds of whole groups.
        splits: Table of groups and their sides that is used instead: columns ``fold_0`` ... of
            train / val / test, or one column ``split`` or ``fold``. Rows of ``val`` train.
        k: Neighbours of the kNN probe.
        cost: Weight of the data in the linear probe (scikit-learn's ``C``).
        batch_size: Tiles of a forward pass.
        device: Where an encoder given by name runs.
        trust_remote_code: See ``open_encoder``.

    Returns:
        The result, as stored.

    Raises:
        LabelledDataError: If the data cannot be used or split, or ``output`` holds the result of
            another evaluation.
        ValueError: If there is no resample or ``cost`` is not > 0.
        EncoderError: If the folder is no encoder, or embeddings are not finite.
    """
    _check_numbers(n_resamples=n_resamples, cost=cost)
    tiles = data if isinstance(data, LabelledTiles) else LabelledTiles.open(data)
    if not isinstance(encoder, TileEncoder):
        encoder = open_encoder(encoder, device=device, trust_remote_code=trust_remote_code)
    output = Path(output)
    given, sha256 = splits_of_file(tiles, splits, k=k) if splits is not None else ([], None)
    settings: dict[str, Any] = {
        **{"seed": seed, "n_resamples": n_resamples, "protocol": protocol, "k": k, "cost": cost},
        **{
            "class_weights": "balanced",
            "interval": "stratified, bca; differences percentile",
            "splits": sha256,
        },
    }
    stored = _stored(output, evaluation_key(encoder.fingerprint, tiles.fingerprint, settings))
    if stored is not None:
        return stored
    used = given or splits_of(tiles, protocol, seed=seed, k=k)
    encoders = {"encoder": encoder, "untrained": encoder.untrained(seed)}
    features = tile_features(tiles, encoders, batch_size=batch_size)
    predictions = predict(features.by_model, tiles.label_N, used, k=k, cost=cost)
    result = _result(
        encoder, tiles, used, features=features, predictions=predictions, settings=settings
    )
    key_column = tiles.group_column if tiles.group_column in KEY_COLUMNS else "group"
    write_splits(output / SPLITS, used, tiles.group_N, key_column=key_column)
    _write_predictions(output / "predictions.parquet", tiles, predictions, result)
    write_result(output / "result.json", result)
    return result


def _check_numbers(*, n_resamples: int, cost: float) -> None:
    if n_resamples < 1 or not (np.isfinite(cost) and cost > 0):
        msg = (
            "evaluate_encoder: needs n_resamples >= 1 and a finite cost > 0; got "
            f"{n_resamples} and {cost}. Leave them at 2000 and 0.1."
        )
        raise ValueError(msg)


def _stored(output: Path, key: dict[str, Any]) -> EvaluationResult | None:
    path = output / "result.json"
    if not path.exists():
        return None
    stored = read_result(path)
    before = stored.key()
    changed = sorted(name for name in key if before.get(name) != key[name])
    if changed:
        message = f"is the result of another evaluation: {', '.join(changed)} differ"
        raise LabelledDataError(path, f"{message}. Choose another output folder, or delete it.")
    if not (output / "predictions.parquet").is_file():
        return None
    LOGGER.info("%s is there already for this encoder, data and settings: kept", path)
    return stored


def _result(
    encoder: TileEncoder,
    tiles: LabelledTiles,
    splits: list[Split],
    *,
    features: TileFeatures,
    predictions: Predictions,
    settings: dict[str, Any],
) -> EvaluationResult:
    drawn = {name: settings[name] for name in ("n_resamples", "seed")}
    data = _data(tiles, predictions, features)
    is_given = settings["splits"] is not None
    protocol = "given-splits" if is_given else chosen_protocol(tiles, settings["protocol"])
    scores = scores_of(tiles, predictions, **drawn)
    comparisons = comparisons_of(tiles, predictions, **drawn)
    leakage = seen_in_pretraining(
        encoder.config.provenance,
        tiles.group_N[predictions.tested].tolist(),
        is_grouped=tiles.is_grouped,
    )
    spread = {name: rankme(features.by_model[name]) for name in ("encoder", "untrained")}
    return EvaluationResult(
        encoder_fingerprint=encoder.fingerprint,
        encoder_config=encoder.config.model_dump(mode="json"),
        data=data,
        settings=settings,
        protocol=protocol,
        n_splits=len(splits),
        chance={
            "balanced_accuracy": 1 / len(data.classes),
            "majority_accuracy": max(c.n_tiles for c in data.classes.values()) / data.n_tiles,
        },
        rankme=spread,
        scores=scores,
        comparisons=comparisons,
        leakage=leakage,
        notes=[
            *grouping_notes(tiles, data),
            leakage_note(leakage),
            *comparison_notes(comparisons),
            *split_notes(protocol, data, never_trained_on(tiles, splits)),
            *technical_notes(data, scores, spread),
        ],
        versions=versions(),
        commit=git_commit(),
    )


def _data(tiles: LabelledTiles, predictions: Predictions, features: TileFeatures) -> Data:
    label, group = tiles.label_N[predictions.tested], tiles.group_N[predictions.tested]
    classes = {
        str(name): ClassCount(
            n_tiles=int((label == name).sum()), n_groups=len(np.unique(group[label == name]))
        )
        for name in np.unique(label)
    }
    return Data(
        name=tiles.path.name,
        fingerprint=tiles.fingerprint,
        n_tiles=len(label),
        n_groups=len(np.unique(group)),
        group_column=tiles.group_column,
        classes=classes,
        preparation=dict(features.preparation),
    )


def _write_predictions(
    path: Path, tiles: LabelledTiles, predictions: Predictions, result: EvaluationResult
) -> None:
    """One row a tested tile: file, group, label, split and what each model and probe predicted."""
    rows = predictions.tested
    columns: dict[str, Any] = {
        "file": [tiles.file_N[row] for row in rows],
        "group": tiles.group_N[rows].tolist(),
        "label": tiles.label_N[rows].tolist(),
        "split": predictions.split_N[rows].tolist(),
    }
    for (model, probe), label_N in predictions.label_N.items():
        columns[f"{model}_{probe}"] = label_N[rows].tolist()
    table = pa.table(columns).replace_schema_metadata(
        {
            b"anlage.format": PREDICTIONS_FORMAT,
            b"anlage.encoder": result.encoder_fingerprint.encode(),
            b"anlage.data": result.data.fingerprint.encode(),
        }
    )
    with replace_whole(path) as beside:
        pq.write_table(table, beside)
