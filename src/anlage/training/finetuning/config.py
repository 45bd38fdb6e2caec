"""What a fine-tuning run is: the frozen model behind its recipes."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from anlage.training.finetuning.model_config import ModelChoice
from anlage.training.finetuning.task_config import Task
from anlage.training.section import Section, Share
from anlage.training.tile_config import MAX_SEED

BASE_BATCH = 256  # bags at which a rate is base_lr
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]


class FinetuneRates(Section):
    """AdamW with BEiT's layer decay, and how its rate goes.

    Attributes:
        peak_lr: Learning rate after the warm-up; or give ``base_lr``.
        base_lr: Rate of a batch of 256 bags: the rate is ``base_lr * batch_size / 256``.
        schedule: After the warm-up: ``cosine`` to ``min_lr``, or ``constant``.
        min_lr: Rate at the end of the cosine.
        warmup_epochs: Epochs, also a part of one, in which the rate rises linearly from 0.
        weight_decay: Of all weights with two dimensions or more; biases and norms have none.
        layer_decay: Factor on the rate for each layer of the slide encoder further from its output;
            1 for none.
        betas: The two decay rates.
        epsilon: Added to the root of the second moment.
        clip_norm: Largest norm of the whole gradient; None for no limit.
    """

    peak_lr: PositiveFloat | None = None
    base_lr: PositiveFloat | None = None
    schedule: Literal["cosine", "constant"] = "cosine"
    min_lr: float = Field(default=0.0, ge=0.0)
    warmup_epochs: float = Field(default=0.0, ge=0.0)
    weight_decay: float = Field(default=0.01, ge=0.0)
    layer_decay: float = Field(default=1.0, gt=0.0, le=1.0)
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    epsilon: PositiveFloat = 1e-8
    clip_norm: PositiveFloat | None = None

    @model_validator(mode="after")
    def _one_rate(self) -> Self:
        if (self.peak_lr is None) == (self.base_lr is None):
            msg = (
                f"needs peak_lr, or base_lr (of {BASE_BATCH} bags); got {self.peak_lr} and "
                f"{self.base_lr}. Set the other to null"
            )
            raise ValueError(msg)
        return self

    def rate(self, batch_size: int) -> float:
        """Peak learning rate of a batch of so many bags."""
        if self.peak_lr is not None:
            return self.peak_lr
        assert self.base_lr is not None
        return self.base_lr * batch_size / BASE_BATCH


class Folds(Section):
    """How slides are divided, always by whole patients. A file of splits takes the place of it.

    Attributes:
        kind: ``folds`` (each patient is tested once; classes spread evenly), ``random`` (so many
            independent divisions by the shares below: GigaPath's ten of 70/10/20), ``sites`` (folds
            of whole hospitals, after Howard et al. 2021; the labels need a ``site``; those that
            choose the epoch are of the hospitals trained on), or ``column``
            (a column of the labels holds train, val and test, or numbers of folds).
        n: Folds, or random divisions; not of ``column``.
        validation: Share of all patients that ``random`` sets apart to choose the epoch on.
        test: Share of all patients that ``random`` tests on.
        column: Name of the column (``column``).
        inner: Share of the training patients that are set apart to choose the epoch on, where an
            epoch is chosen and the division has no validation side.
    """

    kind: Literal["folds", "random", "sites", "column"] = "folds"
    n: PositiveInt = 5
    validation: Share = 0.1
    test: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    column: str | None = None
    inner: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.kind in {"folds", "sites"} and self.n < 2:
            msg = f"kind={self.kind} needs n of 2 or more; got {self.n}. Ask for two folds or more"
            raise ValueError(msg)
        if (self.kind == "column") != (self.column is not None):
            msg = "kind=column and the name of the column need each other. Give both or neither"
            raise ValueError(msg)
        if self.kind == "random" and self.validation + self.test >= 1:
            msg = f"needs some patients left to train on; got {self.validation} and {self.test}"
            raise ValueError(msg)
        return self


class Choice(Section):
    """Which epoch's model is kept, and when to stop waiting for a better one.

    Attributes:
        keep: ``last`` epoch, or the ``best`` on the validation patients, who are never tested.
        by: What is best: the smallest ``loss``, or the largest ``score`` (the task's first metric;
            the smallest where it is an error).
        patience: Epochs without a better one after which a fold ends; None for never.
    """

    keep: Literal["last", "best"] = "best"
    by: Literal["loss", "score"] = "loss"
    patience: PositiveInt | None = None

    @model_validator(mode="after")
    def _patience_waits_for_the_best(self) -> Self:
        if self.patience is not None and self.keep == "last":
            msg = "patience needs keep=best; the last epoch is not waited for"
            raise ValueError(msg)
        return self

    @property
    def needs_validation(self) -> bool:
        """Whether patients are set apart from training."""
        return self.keep == "best"


class Tiles(Section):
    """The tiles of a bag as training sees them; validation and test see all, as they lie.

    Attributes:
        shuffle: Put them into another order at each draw.
        most: Draw at most so many of a bag at a time, anew at each draw; None for all.
    """

    shuffle: bool = False
    most: PositiveInt | None = None


class FinetuneConfig(Section):
    """A whole fine-tuning run: a task, a model, its training, its folds.

    Attributes:
        seed: Seed of everything random: folds, weights, order, dropout; 0 to 2**32 - 1.
        epochs: Times that training sees each bag.
        batch_size: Bags of an optimiser step. ``survival_cox``, which compares them, takes a slide
            once a step: one that ends an epoch, or is larger than the training side, has fewer.
        accumulate: Parts in which a step's bags are taken, one after the other; must divide
            ``batch_size``. The step is that of all bags at once, with each part's own dropout.
        precision: ``auto`` (bf16 autocast where the processor computes it natively), ``bf16`` or
            ``fp32``. Under ``auto`` the kept model predicts in float32 on a CPU, so that it gives
            the same numbers on each.
        recompute: Keep only the input of each of the slide encoder's layers, and compute them again
            in the backward pass.
        task: What is predicted.
        model: From tile embeddings to the prediction.
        tiles: What of a bag is seen.
        optimizer: Rates and decays.
        folds: Who trains and who tests.
        choice: Which epoch is kept.
        resamples: Bootstrap resamples of patients for the intervals.
    """

    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    epochs: PositiveInt
    batch_size: PositiveInt = 1
    accumulate: PositiveInt = 1
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    recompute: bool = False
    task: Task
    model: ModelChoice = ModelChoice()
    tiles: Tiles = Tiles()
    optimizer: FinetuneRates
    folds: Folds = Folds()
    choice: Choice = Choice()
    resamples: PositiveInt = 2000

    @property
    def part_size(self) -> int:
        """Bags that go through the network together."""
        return self.batch_size // self.accumulate

    @model_validator(mode="after")
    def _loss_has_what_it_compares(self) -> Self:
        kind = self.task.kind
        if kind == "survival_cox" and self.batch_size < 2:
            msg = "survival_cox compares the bags of a step. Set batch_size to 8 or more"
            raise ValueError(msg)
        if self.model.instance_weight and kind not in {"binary", "multi_class"}:
            msg = f"model.instance_weight is of binary and multi_class tasks; got {kind}"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _recompute_has_layers(self) -> Self:
        if self.recompute and self.model.slide_encoder is None:
            msg = "recompute is of the slide encoder's layers; there is none. Set recompute=false"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _parts_are_even(self) -> Self:
        if self.batch_size % self.accumulate:
            msg = (
                f"accumulate={self.accumulate} needs to divide batch_size={self.batch_size}. "
                "Change one of them"
            )
            raise ValueError(msg)
        peak = self.optimizer.rate(self.batch_size)
        if self.optimizer.min_lr > peak:
            msg = (
                f"optimizer.min_lr={self.optimizer.min_lr:g} needs to be at most the rate {peak:g}"
            )
            raise ValueError(msg)
        if self.optimizer.warmup_epochs >= self.epochs and self.optimizer.warmup_epochs > 0:
            msg = f"optimizer.warmup_epochs needs to be less than epochs={self.epochs}"
            raise ValueError(msg)
        return self
