"""What a fine-tuning run looks at before its first step: labels, bags, encoder, folds."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anlage.bags.loader import BagCache, BagSet
from anlage.bags.slide_labels import SlideLabels
from anlage.bags.store import list_bags
from anlage.encoders.open_slide_encoder import open_slide_encoder
from anlage.encoders.precision import resolved_precision
from anlage.encoders.slide_encoder import OpenSlideEncoder
from anlage.encoders.tile_encoder import torch_device
from anlage.errors import RecipeError
from anlage.probes.splits.split import Split
from anlage.slides.storage.location import is_remote
from anlage.training.finetuning.config import FinetuneConfig
from anlage.training.finetuning.floors import mean_tiles
from anlage.training.finetuning.folds import folds_of, rows_on_sides, table_of_folds
from anlage.training.finetuning.material import Material
from anlage.training.finetuning.network import grid_um_of, refuse_unfit_model
from anlage.training.finetuning.result import LeftOut
from anlage.training.finetuning.targets import Targets, targets_of

LOGGER = logging.getLogger(__name__)
ON_NO_SIDE = "on no side of the splits"
PRECISION = "precision"
UNLABELLED = "with a bag and without a row in the labels"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prepared:
    """A run that can begin.

    Attributes:
        material: Bags, targets, encoder.
        splits: The folds.
        means: (D,) mean tile of each slide; empty where bags were not read.
        refused: Labelled slides without a usable bag.
        passed_over: How many slides the task does not take, by reason.
        n_without_patient: Slides of the folds whose patient the labels do not name.
        tile_provenance: Of the tile encoder, as the folder of bags tells it; empty if it does not.
        data: Fingerprints of bags, labels, splits and slide encoder.
    """

    material: Material
    splits: list[Split]
    means: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    refused: list[LeftOut]
    passed_over: dict[str, int]
    n_without_patient: int
    tile_provenance: Mapping[str, Any]
    data: dict[str, Any]

    @property
    def is_grouped(self) -> bool:
        """Whether the labels name patients at all."""
        return self.n_without_patient < len(self.rows)

    @property
    def rows(self) -> NDArray[np.int64]:
        """Rows of ``material.targets`` that are on some side of some fold, sorted."""
        return rows_on_sides(self.splits)


def prepare(
    config: FinetuneConfig,
    bags: str | Path,
    labels: SlideLabels | str | Path,
    *,
    splits: str | Path | None = None,
    device: str = "auto",
    threads: int = 2,
    reads_bags: bool = True,
) -> Prepared:
    """Open everything a run needs, and refuse early what would end it later.

    Args:
        config: The recipe.
        bags: Folder or URL of bags of one tile encoder.
        labels: Table of slides and their labels.
        splits: Table of sides, in place of ``config.folds``.
        device: Where to train.
        threads: Threads that read bags.
        reads_bags: Read each bag of the task once, so that damaged ones are left out before folds
            are made; False looks at headers alone.

    Raises:
        BagError: If bags are of several encoders, or of another one than the slide encoder takes.
        CatalogueError: If the labels cannot be used, or a fold cannot be trained.
        DeviceError: If there is no such device.
        EncoderError: If the slide encoder cannot be opened.
        LabelledDataError: If the table of splits cannot be used.
        RecipeError: If the parts of the model do not fit each other, or the device does not have
            the precision.
    """
    torch_on = torch_device(device)
    _refuse_precision(config, torch_on)
    labels = labels if isinstance(labels, SlideLabels) else SlideLabels.open(labels)
    for column in config.task.columns:
        labels.column(column)
    encoder = _encoder(config)
    found = _bags(config, bags, labels, encoder)
    targets = targets_of(config.task, labels, found)
    folds = folds_of(config, targets, labels, splits=splits)
    refuse_unfit_model(config, targets, folds, input_width=found.width, encoder=encoder)
    cache = BagCache(found)
    means: dict[str, NDArray[np.float32]] = {}
    if reads_bags:
        whole, targets, means = _read(config, labels, cache, targets, threads=threads)
        if whole is not found:
            found, folds = whole, folds_of(config, targets, labels, splits=splits)
    material = Material(
        bags=found,
        targets=targets,
        grid_um=grid_um_of(config, encoder),
        encoder=encoder,
        cache=cache,
        device=torch_on,
        threads=threads,
    )
    return Prepared(
        material=material,
        splits=folds,
        means=means,
        refused=_refused(found),
        passed_over=_passed_over(targets, folds, labels, list_bags(bags)),
        n_without_patient=_n_without_patient(targets, folds, labels),
        tile_provenance=_tile_provenance(found),
        data=_fingerprints(material, labels, folds),
    )


def _refuse_precision(config: FinetuneConfig, device: torch.device) -> None:
    """Refuse to train in what the kept model could not predict in."""
    try:
        resolved_precision(config.precision, device)
    except ValueError as error:
        what = f"needs {config.precision} in hardware, which this {device.type} device lacks"
        raise RecipeError(PRECISION, f"{what}. Set precision=auto or fp32.") from error


def _bags(
    config: FinetuneConfig,
    bags: str | Path,
    labels: SlideLabels,
    encoder: OpenSlideEncoder | None,
) -> BagSet:
    """The labelled bags by their headers, all of an encoder that the model takes."""
    found = BagSet.open(
        bags,
        slide_ids=labels.slide_ids,
        grid_um=None if config.model.slide_encoder is None else grid_um_of(config, encoder),
    )
    if encoder is not None:
        encoder.refuse_bag(
            found.attributes, width=found.width, n_tiles=max(found.n_tiles), place=found.folder
        )
    return found


def _read(
    config: FinetuneConfig, labels: SlideLabels, cache: BagCache, targets: Targets, *, threads: int
) -> tuple[BagSet, Targets, dict[str, NDArray[np.float32]]]:
    """Read the task's bags: the set without damaged ones, its targets, and the mean tiles.

    Another slide of a patient may stand in for a damaged one, and is read then.
    """
    found = cache.bags
    means: dict[str, NDArray[np.float32]] = {}
    while unread := [slide_id for slide_id in targets.slide_ids if slide_id not in means]:
        more, damaged = mean_tiles(cache, unread, threads=threads)
        means |= more
        if damaged:
            found = found.without(damaged)
            targets = targets_of(config.task, labels, found)
    return found, targets, means


def _n_without_patient(targets: Targets, folds: list[Split], labels: SlideLabels) -> int:
    slide_ids = [targets.slide_ids[row] for row in rows_on_sides(folds)]
    return sum(labels.patient_of[slide_id] == slide_id for slide_id in slide_ids)


def _passed_over(
    targets: Targets, folds: list[Split], labels: SlideLabels, with_bag: Iterable[str]
) -> dict[str, int]:
    counts = {why: len(ids) for why, ids in targets.left_out.items()}
    n_on_no_side = len(targets) - len(rows_on_sides(folds))
    counts |= {ON_NO_SIDE: n_on_no_side} if n_on_no_side else {}
    n_unlabelled = len(set(with_bag) - set(labels.slide_ids))
    return counts | ({UNLABELLED: n_unlabelled} if n_unlabelled else {})


def _fingerprints(material: Material, labels: SlideLabels, folds: list[Split]) -> dict[str, Any]:
    encoder = material.encoder
    return {
        "bags": material.bags.fingerprint,
        "labels": labels.fingerprint,
        "splits": table_of_folds(folds, material.targets).sha256,
        "slide_encoder": None if encoder is None else encoder.fingerprint,
        "tile_encoder": material.bags.attributes.encoder_fingerprint,
    }


def _encoder(config: FinetuneConfig) -> OpenSlideEncoder | None:
    choice = config.model.slide_encoder
    if choice is None or choice.init is None:
        return None
    return open_slide_encoder(choice.init)


def _refused(found: BagSet) -> list[LeftOut]:
    missing = [LeftOut(slide_id=slide_id, reason="has no bag") for slide_id in found.missing]
    empty = [LeftOut(slide_id=slide_id, reason="its bag holds no tile") for slide_id in found.empty]
    damaged = [
        LeftOut(slide_id=Path(error.path).stem, reason=error.message) for error in found.refused
    ]
    return [*missing, *empty, *damaged]


def _tile_provenance(found: BagSet) -> Mapping[str, Any]:
    """What ``embedding.json`` beside the bags tells of the encoder that made them."""
    path = Path(found.folder) / "embedding.json"
    if is_remote(found.folder) or not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        provenance = record["encoder"]["provenance"]
        is_of_these = record["encoder_fingerprint"] == found.attributes.encoder_fingerprint
    except (OSError, ValueError, KeyError, TypeError) as error:
        LOGGER.warning("%s: tells nothing of the tile encoder (%s)", path, error)
        return {}
    return dict(provenance) if is_of_these else {}
