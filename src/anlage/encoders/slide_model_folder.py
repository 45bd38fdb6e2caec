"""A fine-tuned slide model's folder: tile features of a slide to a prediction.

Shape suffixes: T tiles of all bags, D width of a tile embedding, B bags, C outputs, P numbers of a
prediction, A attention branches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from anlage.bags.bag import BagAttributes
from anlage.encoders.bundled import CONFIG
from anlage.encoders.network_folder import (
    read_config,
    read_network,
    save_network,
    unless_replaced,
)
from anlage.encoders.precision import DTYPES, Precision, resolved_precision
from anlage.encoders.slide_encoder import SlideEncoderConfig, TileEncoderFacts, refuse_bag
from anlage.encoders.tile_encoder import torch_device, weights_sha256
from anlage.errors import EncoderError
from anlage.folder_replacement import whole_folder
from anlage.models.slide_model import SlideModel, SlideOutput
from anlage.objectives.slide_classification import (
    binary_probability,
    class_probabilities,
    label_probabilities,
)
from anlage.objectives.slide_ordinal import grade_probabilities
from anlage.objectives.slide_survival import hazard_risk, hazard_survival
from anlage.provenance import sha256_of_json

FORMAT: Final = "slide-model/1"
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
TaskKind = Literal[
    "binary",
    "multi_class",
    "multi_label",
    "ordinal",
    "survival_cox",
    "survival_discrete",
    "regression",
]


class SlideTask(BaseModel):
    """What a slide model predicts, and how its outputs are read.

    Attributes:
        kind: Kind of the task.
        target: Columns of the labels it was trained on; time and event of survival.
        classes: Names of classes (of ``binary`` the positive one last), grades from lowest to
            highest, or labels.
        threshold: Where numbers were cut into low and high; high is at or above it.
        unit: ``slide``, ``largest_slide`` of a patient, or ``patient`` (the mean over its slides).
        mean: Of the training targets of ``regression``, in their unit.
        deviation: Likewise.
        edges: Inner edges of the intervals of ``survival_discrete``, in the unit of time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: TaskKind
    target: tuple[str, ...]
    classes: tuple[str, ...] = ()
    threshold: float | None = None
    unit: Literal["slide", "largest_slide", "patient"] = "slide"
    mean: float | None = None
    deviation: Positive | None = None
    edges: tuple[float, ...] = ()

    @property
    def score_names(self) -> tuple[str, ...]:
        """What the P numbers of a prediction are; ``survival_1``: to live past the first edge."""
        match self.kind:
            case "binary":
                return (f"probability_{self.classes[1]}",)
            case "multi_class" | "multi_label" | "ordinal":
                return tuple(f"probability_{name}" for name in self.classes)
            case "survival_cox":
                return ("risk",)
            case "survival_discrete":
                past = range(1, len(self.edges) + 1)  # folds have edges of their own
                return ("risk", *(f"survival_{number}" for number in past))
            case "regression":
                return ("value",)

    def scores(self, logits_BC: Tensor) -> Tensor:
        """Read outputs as a prediction.

        Args:
            logits_BC: (B, C) outputs of the network.

        Returns:
            (B, P) float64 on the CPU: probability of the positive class; of each class or grade,
            summing to 1; of each label; log hazard; risk (minus the expected number of intervals
            lived through) and the chance to live past each edge; or the value in its own unit.
        """
        logits = logits_BC.detach().float().cpu()
        if self.kind == "regression":
            assert self.mean is not None
            assert self.deviation is not None
            return logits.double() * self.deviation + self.mean
        return READINGS[self.kind](logits).double()


def _positive(logits_B1: Tensor) -> Tensor:
    return binary_probability(logits_B1)[:, None]


def _risk_and_survival(logits_BC: Tensor) -> Tensor:
    past_BC = hazard_survival(logits_BC)[:, :-1]
    return torch.cat([hazard_risk(logits_BC)[:, None], past_BC], dim=1)


def _as_it_is(logits_B1: Tensor) -> Tensor:
    return logits_B1


READINGS: Mapping[TaskKind, Callable[[Tensor], Tensor]] = {
    "binary": _positive,
    "multi_class": class_probabilities,
    "multi_label": label_probabilities,
    "ordinal": grade_probabilities,
    "survival_cox": _as_it_is,
    "survival_discrete": _risk_and_survival,
}


class SlideModelConfig(BaseModel):
    """All of a slide model but its weights; the ``config.json`` of its folder.

    Attributes:
        format: Format and version of the folder.
        architecture: Keyword arguments of ``SlideModel``.
        task: What it predicts.
        tile_encoder: Whose bags it takes.
        grid_um: Edge of a cell of the slide's grid, micrometres.
        provenance: What made it: recipe, fold, patients it was trained on, bags, versions.
        weights_sha256: Checksum of the weights; ``save_slide_model`` fills it in.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["slide-model/1"] = FORMAT
    architecture: dict[str, Any]
    task: SlideTask
    tile_encoder: TileEncoderFacts
    grid_um: Positive = 128.0
    provenance: dict[str, Any] = Field(default_factory=dict)
    weights_sha256: str | None = None


class SlidePrediction(NamedTuple):
    """What a slide model says of bags.

    Attributes:
        score_BP: (B, P) float64 on the CPU, named by ``task.score_names``.
        attention_TA: (T, A) float32 attention of the pooling, summing to 1 within each bag; None
            where there is none.
        output: The network's own output.
    """

    score_BP: Tensor
    attention_TA: Tensor | None
    output: SlideOutput


class OpenSlideModel:
    """Bags in, predictions out.

    Takes the network over: moves it to the device and switches it to evaluation.

    Args:
        name: What it was opened by.
        config: Architecture, task, tile encoder and grid.
        network: The model that ``config.architecture`` describes.
        device: ``cpu``, ``cuda``, ``cuda:N``, or ``auto`` for CUDA where there is one.
        precision: As of a ``TileEncoder``.

    Attributes:
        name: As given.
        config: As given.
        network: On ``device``, in evaluation mode.
        device: Where it runs.
        precision: ``fp32``, ``bf16`` or ``fp16``.

    Raises:
        ValueError: If the device cannot compute in the precision asked for.
    """

    def __init__(
        self,
        name: str,
        config: SlideModelConfig,
        network: SlideModel,
        *,
        device: str | torch.device = "cpu",
        precision: Precision = "auto",
    ) -> None:
        self.name, self.config = name, config
        self.device = torch_device(device)
        self.precision = resolved_precision(precision, self.device)
        self.network = network.to(self.device).eval()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over what decides a prediction: architecture, task, grid, tiles and weights."""
        decides = {"format", "architecture", "task", "grid_um", "tile_encoder"}
        weights = weights_sha256(self.network.state_dict())
        return sha256_of_json([self.config.model_dump(mode="json", include=decides), weights])

    def predict(
        self, features_TD: Tensor, cell_T2: Tensor, lengths: Sequence[int]
    ) -> SlidePrediction:
        """Predict slides.

        Args:
            features_TD: (T, D) tile embeddings, bag after bag, of any floating dtype and device.
            cell_T2: (T, 2) int64 cells (x, y) of a grid of ``config.grid_um``.
            lengths: Tiles of each bag, each at least 1.

        Returns:
            The predictions; a slide's does not depend on the others.

        Raises:
            ValueError: If shapes and lengths do not fit each other or the network.
        """
        dtype = DTYPES.get(self.precision)
        autocast = torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)
        with torch.no_grad(), autocast:
            output: SlideOutput = self.network(
                features_TD.to(self.device, torch.float32, non_blocking=True),
                cell_T2.to(self.device, non_blocking=True),
                lengths,
            )
        return SlidePrediction(
            self.config.task.scores(output.logits_BC), output.attention_TA, output
        )

    def refuse_bag(
        self, attributes: BagAttributes, *, width: int, n_tiles: int, place: str | Path
    ) -> None:
        """Refuse a bag that it was not made for, as a slide encoder does.

        Raises:
            BagError: If it is empty or too large, or of another encoder, width or resolution.
        """
        takes = SlideEncoderConfig(
            architecture={},
            grid_um=self.config.grid_um,
            tile_encoder=self.config.tile_encoder,
        )
        refuse_bag(takes, attributes, width=width, n_tiles=n_tiles, place=place)


def save_slide_model(folder: str | Path, network: SlideModel, config: SlideModelConfig) -> None:
    """Write a slide model's folder whole; one already there is replaced whole.

    Args:
        folder: Folder to make; it may be absent, empty, or a slide model's.
        network: On any device.
        config: Its description; the checksum of the weights is filled in.

    Raises:
        EncoderError: If the folder holds anything else, or a weight is not finite.
        ValueError: If the network is not of ``config.architecture``.
    """
    save_network(
        folder,
        network,
        config,
        build=lambda: SlideModel(**config.architecture),
        who="save_slide_model",
    )


def load_slide_model(
    folder: str | Path, *, device: str | torch.device = "cpu", precision: Precision = "auto"
) -> OpenSlideModel:
    """Open a slide model's folder, refusing whatever is not exactly what it says.

    Args:
        folder: A folder that ``save_slide_model`` wrote, such as ``RUN/fold-0/model``.
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``.
        precision: As of a ``TileEncoder``.

    Returns:
        The model in evaluation mode, weights in float32. No random number is drawn.

    Raises:
        EncoderError: If a file is missing, cut short or of another version, a key is unknown, a
            tensor is missing, unexpected, misshapen or not finite, or the checksum does not match.
    """
    config, network = unless_replaced(lambda: whole_folder(folder), lambda: _load(folder))
    return OpenSlideModel(str(folder), config, network, device=device, precision=precision)


def _load(folder: str | Path) -> tuple[SlideModelConfig, SlideModel]:
    place = whole_folder(folder)
    if not (place / CONFIG).exists():
        what = f"holds no {CONFIG}" if place.is_dir() else "no such slide model folder"
        raise EncoderError(folder, f"{what}. Name one such as RUN/fold-0/model.")
    config = read_config(place / CONFIG, SlideModelConfig, form=FORMAT)
    network = read_network(
        place, checksum=config.weights_sha256, build=lambda: SlideModel(**config.architecture)
    )
    return config, network
