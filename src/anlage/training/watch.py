"""A look at the encoder of a run: probes on labelled tiles, and whether embeddings collapse."""

# Shape suffixes: N tiles, 3 channels, S pixels of an edge, D embedding width.

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import nan
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from anlage.encoders.embed_batch import embed_batches
from anlage.encoders.tile_encoder import EncoderConfig, TileEncoder
from anlage.errors import EncoderError
from anlage.models.vit import VisionTransformer
from anlage.probes.linear.eva import linear_probe_eva
from anlage.probes.metrics.classification import BALANCED_ACCURACY
from anlage.probes.neighbours.knn import knn_probe
from anlage.probes.splits.split import Split
from anlage.probes.unsupervised import (
    feature_std,
    off_diagonal_correlation,
    rankme,
    uniformity,
)
from anlage.training.watched_rows import WatchedRows, watched_splits
from anlage.training.watched_tiles import WatchedTiles, refuse_pixels

LOGGER = logging.getLogger(__name__)
KNN, LINEAR = "watch_knn", "watch_linear"


@dataclass(frozen=True, kw_only=True, eq=False)
class Look:
    """What was seen of the encoder at one step.

    Attributes:
        metrics: By name: ``watch_rankme``, ``watch_odcorr``, ``watch_feature_std``,
            ``watch_uniformity``; with labels also ``watch_knn`` and ``watch_linear``, the balanced
            accuracy of each probe over all tiles, 0 to 1. NaN where one has no value.
        embedding_ND: (N, D) float32, the embeddings they are of.
    """

    metrics: dict[str, float]
    embedding_ND: NDArray[np.float32]


def look(
    model: VisionTransformer,
    tiles: WatchedTiles,
    *,
    config: EncoderConfig,
    neighbours: int = 20,
    probe_steps: int = 500,
    seed: int = 0,
    batch_size: int = 64,
) -> Look:
    """Embed labelled tiles and probe the embeddings, on folds that are the same in every look.

    The kNN probe is UNI's (centred, cosine); the linear probe is eva's, with fewer steps. Nothing
    random is drawn from a global generator, and on a CPU the same look twice gives the same bits.
    The model comes back in its mode, on its device.

    Args:
        model: The teacher's transformer.
        tiles: The tiles.
        config: Transform and pooling the encoder is used with.
        neighbours: k of the kNN probe.
        probe_steps: Steps of the linear probe, of 256 tiles each.
        seed: Of folds and of the linear probe's first weights and order of rows.
        batch_size: Tiles of a forward pass.

    Returns:
        The metrics, with and without labels.

    Raises:
        LabelledDataError: If the tiles cannot be split into folds.
        EncoderError: If an embedding is not finite.
    """
    pixels_N3SS = torch.from_numpy(tiles.pixels_N3SS)
    embedding_ND = _embeddings(
        model, pixels_N3SS, config=config, batch_size=batch_size, where=str(tiles.path)
    )
    scores = probed(embedding_ND, tiles, neighbours=neighbours, probe_steps=probe_steps, seed=seed)
    return Look(metrics=scores | collapse_of(embedding_ND), embedding_ND=embedding_ND)


def probed(
    embedding_ND: NDArray[np.float32],
    rows: WatchedRows,
    *,
    neighbours: int,
    probe_steps: int,
    seed: int = 0,
) -> dict[str, float]:
    """Balanced accuracy of both probes over all rows, on folds that are the same in every look.

    Args:
        embedding_ND: (N, D) float32.
        rows: Label and group of each row.
        neighbours: k of the kNN probe.
        probe_steps: Steps of the linear probe.
        seed: Of folds, first weights and order.

    Returns:
        ``watch_knn`` and ``watch_linear``, 0 to 1; NaN where one has no value.

    Raises:
        LabelledDataError: If the rows cannot be split into folds.
    """
    splits = watched_splits(rows, neighbours=neighbours, seed=seed)

    def knn(split: Split) -> NDArray[Any]:
        train, test = embedding_ND[split.train], embedding_ND[split.test]
        return knn_probe(train, rows.label_N[split.train], test, k=neighbours).label_N

    def linear(split: Split) -> NDArray[Any]:
        train, test = embedding_ND[split.train], embedding_ND[split.test]
        (head,) = linear_probe_eva(
            train, rows.label_N[split.train], n_runs=1, n_steps=probe_steps, seed=seed
        )
        return head.predict(test).label_N

    return {
        KNN: _score(KNN, knn, rows, splits),
        LINEAR: _score(LINEAR, linear, rows, splits),
    }


def look_unlabelled(
    model: VisionTransformer,
    pixels_N3SS: Tensor,
    *,
    config: EncoderConfig,
    batch_size: int = 64,
) -> Look:
    """A look at tiles without labels, such as the first ones of the stream: no probe.

    Args:
        model: The teacher's transformer; comes back in its mode, on its device.
        pixels_N3SS: (N, 3, S, S) uint8 tiles, the same in every look; N well above the width.
        config: Transform and pooling the encoder is used with.
        batch_size: Tiles of a forward pass.

    Returns:
        The metrics that need no labels.

    Raises:
        EncoderError: If an embedding is not finite.
        ValueError: If the pixels are not (N, 3, S, S) uint8.
    """
    refuse_pixels("look_unlabelled", pixels_N3SS.shape, pixels_N3SS.dtype)
    embedding_ND = _embeddings(
        model, pixels_N3SS.cpu(), config=config, batch_size=batch_size, where="watched tiles"
    )
    return Look(metrics=collapse_of(embedding_ND), embedding_ND=embedding_ND)


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """Switch a model to evaluation, and each of its modules back to its own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager"):  # hooks inside compiled blocks do not fire
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _embeddings(
    model: VisionTransformer,
    pixels_N3SS: Tensor,
    *,
    config: EncoderConfig,
    batch_size: int,
    where: str,
) -> NDArray[np.float32]:
    with in_evaluation(model):
        encoder = TileEncoder(config, model, device=model.cls_token.device)
        batches = embed_batches(
            encoder, torch.split(pixels_N3SS, batch_size), batch_size=batch_size
        )
        embedding_ND: NDArray[np.float32] = torch.cat(list(batches)).numpy()
    bad = np.flatnonzero(~np.isfinite(embedding_ND).all(axis=1))
    if len(bad):
        message = f"needs finite embeddings; got NaN or an infinity for tile {bad[0]}"
        raise EncoderError(where, f"{message}. Go on from an earlier checkpoint, or use fp32.")
    return embedding_ND


def _score(
    name: str,
    predicted: Callable[[Split], NDArray[Any]],
    rows: WatchedRows,
    splits: Sequence[Split],
) -> float:
    """Balanced accuracy over all rows, each predicted by a probe that has not seen its group."""
    predicted_N = np.empty_like(rows.label_N)
    try:
        for split in splits:
            predicted_N[split.test] = predicted(split)
    except ValueError as error:  # collapsed embeddings, a probe that diverged
        LOGGER.warning("%s has no value: %s", name, error)
        return nan
    return BALANCED_ACCURACY(rows.label_N, predicted_N)


def collapse_of(embedding_ND: NDArray[np.float32]) -> dict[str, float]:
    """What tells of collapse without labels."""
    has_direction = bool(embedding_ND.any(axis=1).all()) and len(embedding_ND) > 1
    return {
        "watch_rankme": rankme(embedding_ND),
        "watch_odcorr": off_diagonal_correlation(embedding_ND),
        "watch_feature_std": feature_std(embedding_ND),
        "watch_uniformity": uniformity(embedding_ND) if has_direction else nan,
    }
