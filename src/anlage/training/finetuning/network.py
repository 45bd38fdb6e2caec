"""The slide model of a fold at its first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from anlage.encoders.slide_encoder import OpenSlideEncoder
from anlage.errors import CatalogueError, RecipeError
from anlage.models.slide_model import SlideModel
from anlage.models.slide_sizes import SIZES
from anlage.models.without_weights import without_weights
from anlage.probes.splits.split import Split
from anlage.training.finetuning.config import FinetuneConfig
from anlage.training.finetuning.model_config import SlideEncoderChoice
from anlage.training.finetuning.objective import TaskObjective, objective_of
from anlage.training.finetuning.targets import Targets

GRID_UM = 128.0  # where no slide encoder says otherwise
PLACE = "the recipe's model"


@dataclass(frozen=True, slots=True, eq=False)
class FreshModel:
    """A model before its first step.

    Attributes:
        network: On the CPU, in training mode; a frozen slide encoder's parameters need no gradient.
        architecture: Keyword arguments that make such a network.
    """

    network: SlideModel
    architecture: dict[str, Any]


def grid_um_of(config: FinetuneConfig, encoder: OpenSlideEncoder | None) -> float:
    """Edge of a cell of the grid that the model's slide encoder was made for, micrometres."""
    choice = config.model.slide_encoder
    if encoder is not None:
        return encoder.config.grid_um
    return GRID_UM if choice is None or choice.grid_um is None else choice.grid_um


def fresh_model(
    config: FinetuneConfig,
    objective: TaskObjective,
    *,
    input_width: int,
    encoder: OpenSlideEncoder | None,
    seed: int,
) -> FreshModel:
    """The model of a recipe, its new parts drawn by the seed, its slide encoder as pretrained.

    Args:
        config: The recipe.
        objective: Of the task, for the outputs.
        input_width: Width of a tile embedding.
        encoder: The pretrained slide encoder, whose weights are copied; None for random ones.
        seed: Of the weights.

    Raises:
        RecipeError: If the parts do not fit each other.
    """
    architecture = model_arguments(config, objective, input_width=input_width, encoder=encoder)
    torch.manual_seed(seed)
    try:
        network = SlideModel(**architecture)
    except (TypeError, ValueError) as error:
        raise RecipeError(PLACE, f"{error}") from error
    if encoder is not None:
        assert network.slide_encoder is not None
        network.slide_encoder.load_state_dict(encoder.network.state_dict())
    choice = config.model.slide_encoder
    if choice is not None and choice.frozen and network.slide_encoder is not None:
        network.slide_encoder.requires_grad_(requires_grad=False)
    return FreshModel(network.train(), architecture)


def refuse_unfit_model(
    config: FinetuneConfig,
    targets: Targets,
    folds: Sequence[Split],
    *,
    input_width: int,
    encoder: OpenSlideEncoder | None,
) -> int:
    """Refuse a model that cannot be built, or a fold whose loss cannot be made; draws no weights.

    Args:
        config: The recipe.
        targets: The slides.
        folds: Their divisions.
        input_width: Width of a tile embedding.
        encoder: The pretrained slide encoder.

    Returns:
        Parameters of the model.

    Raises:
        CatalogueError: If a training side does not allow the task's loss.
        RecipeError: If the parts of the model do not fit each other.
    """
    objectives = [fold_objective(targets, fold) for fold in folds]
    arguments = model_arguments(config, objectives[0], input_width=input_width, encoder=encoder)
    try:
        with without_weights():
            network = SlideModel(**arguments)
    except (TypeError, ValueError) as error:
        raise RecipeError(PLACE, f"{error}") from error
    return sum(parameter.numel() for parameter in network.parameters())


def fold_objective(targets: Targets, split: Split) -> TaskObjective:
    """The objective of a fold.

    Raises:
        CatalogueError: If its training side does not allow the task's loss; names the fold.
    """
    try:
        return objective_of(targets, split.train)
    except ValueError as error:
        place = f"fold {split.name}"
        raise CatalogueError(place, str(error)) from error


def set_training_mode(network: SlideModel) -> None:
    """Training mode, but for a frozen slide encoder, which stays as it is used: no dropout."""
    network.train()
    encoder = network.slide_encoder
    if encoder is not None and not any(p.requires_grad for p in encoder.parameters()):
        encoder.eval()


def model_arguments(
    config: FinetuneConfig,
    objective: TaskObjective,
    *,
    input_width: int,
    encoder: OpenSlideEncoder | None,
) -> dict[str, Any]:
    """Keyword arguments of the recipe's ``SlideModel``; those of ``fresh_model`` but the seed."""
    model = config.model
    return {
        "input_width": input_width,
        "n_outputs": objective.n_outputs,
        "slide_encoder": _encoder_arguments(model.slide_encoder, encoder),
        "route": model.route,
        "layers": model.layers,
        "pooling": None if model.pooling is None else dict(model.pooling),
        "shortcut": model.shortcut,
        "head": "ordered" if config.task.kind == "ordinal" else "linear",
        "dropout": model.dropout,
    }


def _encoder_arguments(
    choice: SlideEncoderChoice | None, encoder: OpenSlideEncoder | None
) -> dict[str, Any] | None:
    if choice is None:
        return None
    if encoder is not None:
        found = dict(encoder.config.architecture)
        found.pop("input_width", None)
    else:
        assert choice.size is not None
        found = dict(SIZES[choice.size])
    changed = {"dropout": choice.dropout, "stochastic_depth": choice.stochastic_depth}
    found |= {name: value for name, value in changed.items() if value is not None}
    if choice.segments is not None:
        found["segments"] = choice.segments
    return {name: list(v) if isinstance(v, tuple) else v for name, v in found.items()}
