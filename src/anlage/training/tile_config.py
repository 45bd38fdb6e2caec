"""What a tile-encoder pretraining run is: the frozen model behind its recipes."""

from __future__ import annotations

from typing import Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from anlage.tiles.augment.spec import MultiCropSpec
from anlage.training.engine_config import Engine
from anlage.training.network_config import Architecture, Head
from anlage.training.objective_config import Objective
from anlage.training.optimizer_config import Optimisation
from anlage.training.section import Section, Share
from anlage.training.tile_source import MagnificationRange, TileSource

MAX_SEED = 2**32 - 1  # the most that every library takes


class EncoderUse(Section):
    """How the trained encoder is to be used; written into its folder.

    Attributes:
        tile_px: Edge of the tiles it embeds, pixels at its mpp; ``views.global_px`` if None.
        mpp: Resolution of those tiles; the most drawn one if None.
        pooling: ``cls``, or ``cls+mean`` with the mean of the patch tokens beside it (Virchow2).
    """

    tile_px: PositiveInt | None = None
    mpp: PositiveFloat | None = None
    pooling: Literal["cls", "cls+mean"] = "cls"


class Initialisation(Section):
    """Where the weights come from at step 0; random where nothing is named.

    Attributes:
        encoder: Weights of the encoder: an encoder folder or ``anlage-tiny``, a ``.safetensors``
            or ``.pth`` file in timm's or DINOv2's names, or ``timm:NAME``. Heads are drawn anew.
        run: A run's folder, of ``anlage pretrain tile`` or ``anlage import-run``: student and
            teacher with their heads.
        freeze_encoder: Share of the run in which the encoder keeps its values while new heads
            learn to read it; going on at once with random heads destroys its features.
    """

    encoder: str | None = None
    run: str | None = None
    freeze_encoder: Share = 0.0

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.encoder is not None and self.run is not None:
            msg = "needs encoder or run; got both. A run brings its encoder"
            raise ValueError(msg)
        if self.freeze_encoder > 0 and self.encoder is None and self.run is None:
            msg = "freeze_encoder needs an encoder or a run; random weights are not worth keeping"
            raise ValueError(msg)
        return self


class Distillation(Section):
    """A frozen larger teacher in place of the student's moving average, which is still kept.

    Attributes:
        run: Run folder of the teacher: the student learns what its heads say of CLS and patches,
            on views that are not masked.
        encoder: Folder of the teacher as an encoder alone, or ``anlage-tiny``: the student learns
            to predict its CLS and patch embeddings, through one linear layer.
    """

    run: str | None = None
    encoder: str | None = None

    @model_validator(mode="after")
    def _one_teacher(self) -> Self:
        if (self.run is None) == (self.encoder is None):
            msg = "needs either run (with heads) or encoder (without)"
            raise ValueError(msg)
        return self


class LastStage(Section):
    """The end of a run on larger tiles and views (UNI, DINOv2), or on finer ones (Midnight).

    Attributes:
        start: Share of the run after which it begins.
        source_px: Edge of the tiles that are read then.
        global_px: Edge of their global crops.
        local_px: Edge of their local crops.
        mpp_factor: What resolutions are multiplied by; 0.5 reads the same field at twice the
            resolution.
    """

    start: Share
    source_px: PositiveInt
    global_px: PositiveInt
    local_px: PositiveInt
    mpp_factor: PositiveFloat = 1.0


class Watch(Section):
    """What a run looks at as it goes, beside its loss.

    Attributes:
        every: Steps between two looks; None for never.
        neighbours: k of the kNN probe.
        probe_steps: Steps of the linear probe.
        pictures: Whether attention maps and PCA of the patches are drawn.
        keep_best: Probe by which the best encoder is kept in ``RUN/best``; None for none.
        patience: Looks without a better probe after which the run ends; None for never.
    """

    every: PositiveInt | None = None
    neighbours: PositiveInt = 20
    probe_steps: PositiveInt = 500
    pictures: bool = True
    keep_best: Literal["knn", "linear"] | None = "knn"
    patience: PositiveInt | None = None

    @model_validator(mode="after")
    def _patience_has_a_measure(self) -> Self:
        if self.patience is not None and self.keep_best is None:
            msg = "patience needs keep_best, the probe that it waits for"
            raise ValueError(msg)
        return self


class TilePretrainConfig(Section):
    """A whole tile-encoder pretraining run.

    Attributes:
        seed: Seed of everything random: tiles, views, masks, weights, stochastic depth; 0 to
            2**32 - 1.
        steps: Optimiser steps.
        batch_size: Tiles a step, over all ranks.
        accumulate: Parts a rank's tiles of a step are taken in, one after the other; the step is
            that of the whole batch. Must divide ``batch_size``; may change when a run goes on.
        checkpoint_every: Steps between checkpoints.
        keep_checkpoints: How many of the newest checkpoints stay on disk.
        precision: ``auto`` (bf16 autocast where the processor computes it natively), ``bf16`` or
            ``fp32``.
        mean: Channel means taken off the pixels, in 0 to 1.
        std: Channel deviations they are divided by.
        tiles: Which tiles are drawn.
        views: How views are cut and coloured.
        model: The vision transformer.
        head: The projection head of DINO, and of iBOT where ``patch_head`` is null (tied heads).
        patch_head: iBOT's own projection head (untied heads).
        objective: The loss.
        optimizer: The optimiser and its schedules.
        init: Where the weights come from.
        distill: A frozen teacher; None for self-distillation.
        last_stage: Larger or finer tiles at the end; None for none.
        watch: What is looked at beside the loss.
        engine: How the run uses its devices; may change when it goes on.
        encoder: How the trained encoder is to be used.
    """

    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    steps: PositiveInt
    batch_size: int = Field(ge=2)
    accumulate: PositiveInt = 1
    checkpoint_every: PositiveInt = 100
    keep_checkpoints: PositiveInt = 2
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.5, 0.5, 0.5)
    tiles: TileSource
    views: MultiCropSpec
    model: Architecture
    head: Head
    patch_head: Head | None = None
    objective: Objective
    optimizer: Optimisation
    init: Initialisation = Initialisation()
    distill: Distillation | None = None
    last_stage: LastStage | None = None
    watch: Watch = Watch()
    engine: Engine = Engine()
    encoder: EncoderUse = EncoderUse()

    @property
    def tile_px(self) -> int:
        """Edge of the tiles that the trained encoder embeds."""
        return self.encoder.tile_px or self.views.global_px

    @property
    def mpp(self) -> float:
        """Resolution of the tiles that the trained encoder embeds."""
        mpp = self.encoder.mpp or self.tiles.most_drawn_mpp
        assert mpp is not None, "checked by _parts_fit"
        return mpp

    @property
    def first_step_of_last_stage(self) -> int:
        """Step at which the last stage begins; ``steps`` where there is none."""
        return self.steps if self.last_stage is None else round(self.last_stage.start * self.steps)

    @property
    def of_last_stage(self) -> Self:
        """The run as it is in its last stage: tiles, views and resolutions of then.

        The encoder is for the same tiles as without that stage.
        """
        stage = self.last_stage
        if stage is None:
            return self
        sizes = {"source_px": stage.source_px, "global_px": stage.global_px}
        views = _in_last_stage(self.views, **sizes, local_px=stage.local_px)
        magnifications = _times(self.tiles.magnifications, stage.mpp_factor)
        tiles = _in_last_stage(self.tiles, magnifications=magnifications)
        use = self.encoder.model_copy(update={"tile_px": self.tile_px, "mpp": self.mpp})
        return self.model_copy(update={"views": views, "tiles": tiles, "encoder": use})

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.views.n_global != 2:
            msg = "views.n_global needs to be 2, each the other's target"
            raise ValueError(msg)
        if self.tiles.most_drawn_mpp is None and self.encoder.mpp is None:
            msg = "encoder.mpp needs a value where tiles.magnifications is a range"
            raise ValueError(msg)
        if self.batch_size % self.accumulate:
            msg = f"accumulate={self.accumulate} needs to divide batch_size={self.batch_size}"
            raise ValueError(msg)
        if self.model.width % self.model.n_heads:
            msg = f"model.n_heads={self.model.n_heads} needs to divide model.width"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _views_are_whole_patches(self) -> Self:
        edges = {
            "views.global_px": self.views.global_px,
            "views.local_px": self.views.local_px,
            "encoder.tile_px": self.tile_px,
        }
        if self.last_stage is not None:
            edges["last_stage.global_px"] = self.last_stage.global_px
            edges["last_stage.local_px"] = self.last_stage.local_px
        for name, crop_px in edges.items():
            if crop_px % self.model.patch_px:
                msg = f"{name} needs a multiple of model.patch_px={self.model.patch_px}"
                raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _tiles_hold_the_crops(self) -> Self:
        spans = {"views": self.views, "last_stage": self.last_stage}
        for name, part in spans.items():
            if part is not None and part.source_px < part.global_px:
                msg = (
                    f"{name}.source_px={part.source_px} needs at least {name}.global_px="
                    f"{part.global_px}; a crop of a smaller tile is only blown up"
                )
                raise ValueError(msg)
        _ = self.of_last_stage  # refuses views that do not fit its tiles
        return self

    @model_validator(mode="after")
    def _heads_belong_to_the_loss(self) -> Self:
        if self.patch_head is not None and not self.objective.uses_patches:
            msg = "patch_head needs objective.ibot_weight above 0; without it nothing trains it"
            raise ValueError(msg)
        if self.distill is not None and self.objective.gram is not None:
            msg = "objective.gram needs self-distillation; a frozen teacher does not drift"
            raise ValueError(msg)
        return self


Part = TypeVar("Part", bound=BaseModel)


def _in_last_stage(part: Part, **changed: Any) -> Part:  # noqa: ANN401 - fields of the part
    """A part of the recipe with other values, refused where they do not fit the others."""
    try:
        return type(part).model_validate({**part.model_dump(), **changed})
    except ValidationError as error:
        told = "; ".join(found["msg"].removeprefix("Value error, ") for found in error.errors())
        msg = f"last_stage: {told}"
        raise ValueError(msg) from error


def _times(
    magnifications: dict[float, float] | MagnificationRange, factor: float
) -> dict[float, float] | MagnificationRange:
    if isinstance(magnifications, MagnificationRange):
        ends = {"low": magnifications.low * factor, "high": magnifications.high * factor}
        return magnifications.model_copy(update=ends)
    return {mpp * factor: share for mpp, share in magnifications.items()}
