"""What a tile-encoder pretraining run is: the frozen model behind its recipes."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)

from anlage.slides.colour import Colour
from anlage.slides.levels import Decode
from anlage.tiles.augment.spec import MultiCropSpec
from anlage.tiles.filters import TileFilters
from anlage.tiles.weights import Base

Share = float  # 0 to 1
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
MAX_SEED = 2**32 - 1  # the most that every library takes


class Frozen(BaseModel):
    """A part of a recipe: immutable, no key it does not know, no NaN and no infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Ramp(Frozen):
    """A value that changes during training, from ``start`` to ``end``.

    Attributes:
        start: Value at step 0.
        end: Value from ``over`` on.
        over: Share of the run after which ``end`` is reached, 0 to 1.
        shape: ``linear`` or ``cosine``.
    """

    start: float
    end: float
    over: Share = Field(default=1.0, ge=0.0, le=1.0)
    shape: Literal["linear", "cosine"] = "cosine"


class MagnificationRange(Frozen):
    """Resolutions drawn from anywhere between two bounds.

    Attributes:
        low: Finest, µm per pixel.
        high: Coarsest, µm per pixel.
        law: ``log``: every doubling is as likely; ``linear``: every µm per pixel is.
    """

    low: PositiveFloat
    high: PositiveFloat
    law: Literal["log", "linear"] = "log"

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.low < self.high:
            msg = "needs low < high, such as {low: 0.25, high: 2}"
            raise ValueError(msg)
        return self


def _shares_or_range(value: object) -> str:
    """Which of the two was meant, so that only its own mistakes are told."""
    if isinstance(value, dict):
        return "(range)" if value.keys() & MagnificationRange.model_fields.keys() else "(shares)"
    return "(range)" if isinstance(value, MagnificationRange) else "(shares)"


class TileSource(Frozen):
    """Which tiles are drawn and how they are read; their edge is ``views.source_px``.

    Attributes:
        magnifications: Shares of the resolutions, µm per pixel -> weight; or ``{low, high, law}``.
        min_tissue: Smallest tissue fraction of a tile, 0 to 1.
        split: Only slides with this value in the catalogue's ``split`` column; None for all.
        base: Slides weigh the same (``slide``) or by their tissue (``tissue_area``).
        balance: Catalogue column -> alpha, 0 to 1: weights are divided by the frequency of the
            slide's value to that power, for every column.
        per_region: Tiles cut from one decoded region. More are read faster and are more alike:
            those of one region lie within one window of steps, with at least 63 other regions.
        filters: What else a tile must pass; a rejected one is drawn again, counted.
        on_error: ``resample``: a tile that cannot be read is drawn again, counted; ``raise``.
        quarantine_after: Errors after which a slide is drawn no more; None for never.
        decode: ``scaled``: JPEG tiles are decoded at 1/2, 1/4 or 1/8 where the resolution allows;
            ``full``: always whole.
        colour: ``stored``, or ``srgb`` by each slide's ICC profile, where it has one.
    """

    magnifications: Annotated[
        Annotated[dict[PositiveFloat, PositiveFloat], Tag("(shares)")]
        | Annotated[MagnificationRange, Tag("(range)")],
        Discriminator(_shares_or_range),
    ]
    min_tissue: Share = Field(default=0.5, ge=0.0, le=1.0)
    split: str | None = None
    base: Base = "slide"
    balance: dict[str, Annotated[Share, Field(ge=0.0, le=1.0)]] = {}
    per_region: int = Field(default=1, ge=1, le=256)  # a window of 64 such regions lies in memory
    filters: TileFilters = TileFilters()
    on_error: Literal["resample", "raise"] = "resample"
    quarantine_after: PositiveInt | None = None
    decode: Decode = "scaled"
    colour: Colour = "stored"

    @property
    def most_drawn_mpp(self) -> float | None:
        """The resolution with the largest share; None for a range."""
        if isinstance(self.magnifications, MagnificationRange):
            return None
        return max(self.magnifications, key=self.magnifications.__getitem__)

    @property
    def coarsest_mpp(self) -> float:
        """The coarsest resolution that is drawn."""
        if isinstance(self.magnifications, MagnificationRange):
            return self.magnifications.high
        return max(self.magnifications)

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if not isinstance(self.magnifications, MagnificationRange) and not self.magnifications:
            msg = "needs at least one mpp with its weight, such as {0.5: 1.0}"
            raise ValueError(msg)
        blur = self.filters.blur
        if blur is not None and blur.mpp < self.coarsest_mpp:
            msg = f"filters.blur.mpp needs at least {self.coarsest_mpp:g}, the coarsest drawn"
            raise ValueError(msg)
        return self


class Architecture(Frozen):
    """The vision transformer; the fields are the arguments of ``VisionTransformer``.

    Attributes:
        image_px: Edge of the image whose patch grid the position embedding has.
        patch_px: Edge of a patch.
        width: Embedding width D.
        depth: Number of blocks.
        n_heads: Attention heads; must divide ``width``.
        n_registers: Register tokens.
        mlp_ratio: Hidden width of the feed-forward layer over ``width``.
        feed_forward: ``mlp`` (GELU) or ``swiglu``.
        layer_scale: Initial LayerScale; None for no LayerScale.
        stochastic_depth: Share of samples that skip a residual branch, in the student.
        dual_patch_norm: LayerNorm before and after the patch projection.
        qk_norm: LayerNorm on queries and keys.
        linear_std: Deviation of the first linear weights; None for one over the root of the
            fan-in.
    """

    image_px: PositiveInt
    patch_px: PositiveInt
    width: PositiveInt
    depth: PositiveInt
    n_heads: PositiveInt
    n_registers: int = Field(default=0, ge=0)
    mlp_ratio: PositiveFloat = 4.0
    feed_forward: Literal["mlp", "swiglu"] = "mlp"
    layer_scale: PositiveFloat | None = 1e-5
    stochastic_depth: float = Field(default=0.0, ge=0.0, lt=1.0)
    dual_patch_norm: bool = False
    qk_norm: bool = False
    linear_std: PositiveFloat | None = 0.02

    @model_validator(mode="after")
    def _whole_patches(self) -> Self:
        if self.image_px % self.patch_px:
            msg = f"image_px needs a multiple of patch_px={self.patch_px}"
            raise ValueError(msg)
        return self


class Head(Frozen):
    """The projection head that DINO and iBOT share (DINOv2's default: tied heads).

    Attributes:
        n_prototypes: Rows of the last layer.
        hidden: Width of its hidden layers.
        bottleneck: Width before the prototypes.
        linear_std: Deviation of the first linear weights; None for one over the root of the
            fan-in.
    """

    n_prototypes: PositiveInt
    hidden: PositiveInt = 2048
    bottleneck: PositiveInt = 256
    linear_std: PositiveFloat | None = 0.02


class Objective(Frozen):
    """The loss: weights of its terms and how the teacher's targets are made.

    Attributes:
        dino_weight: Weight of the CLS term.
        ibot_weight: Weight of the masked-patch term.
        spread: What keeps the batch apart: ``kde`` (Virchow2), ``koleo`` (DINOv2) or ``none``.
        spread_weight: Weight of that term, summed over the global views as DINOv2 does.
        concentration: Sharpness of the KDE kernel.
        targets: ``sinkhorn`` or ``centering``.
        student_temperature: Temperature of the student's softmax.
        teacher_temperature: Temperature of the teacher's.
        masked_share: Share of global views in which patches are masked.
        mask_ratio: Smallest and largest share of patches masked in such a view.
    """

    dino_weight: float = Field(default=1.0, ge=0.0)
    ibot_weight: float = Field(default=1.0, ge=0.0)
    spread: Literal["kde", "koleo", "none"] = "kde"
    spread_weight: float = Field(default=0.05, ge=0.0)
    concentration: PositiveFloat = 5.0
    targets: Literal["sinkhorn", "centering"] = "sinkhorn"
    student_temperature: PositiveFloat = 0.1
    teacher_temperature: Ramp
    masked_share: float = Field(default=0.5, ge=0.0, le=1.0)
    mask_ratio: tuple[float, float] = (0.1, 0.5)

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        least, greatest = self.mask_ratio
        if not 0 < least <= greatest <= 1:
            msg = "mask_ratio needs 0 < smallest <= largest <= 1, such as [0.1, 0.5]"
            raise ValueError(msg)
        if min(self.teacher_temperature.start, self.teacher_temperature.end) <= 0:
            msg = "teacher_temperature needs to stay above 0, such as 0.04 to 0.07"
            raise ValueError(msg)
        return self


class Optimisation(Frozen):
    """AdamW with DINOv2's parameter groups.

    Attributes:
        peak_lr: Learning rate after the warm-up, for this recipe's batch (not scaled by it).
        min_lr: Learning rate at the end of the cosine.
        warmup: Share of the run in which the rate rises linearly from 0.
        betas: AdamW's two decay rates.
        weight_decay: Weight decay over the run.
        layer_decay: Factor on the rate for each block further from the output; 1 for none.
        patch_embed_lr: Factor on the rate of the patch projection.
        clip_norm: Largest gradient norm, for the encoder and for the head each; None for none.
        freeze_prototypes: Share of the run in which the last layer keeps its values.
        teacher_momentum: Decay of the teacher's moving average.
    """

    peak_lr: PositiveFloat
    min_lr: float = Field(default=1e-6, ge=0.0)
    warmup: Share = Field(default=0.1, ge=0.0, lt=1.0)
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    weight_decay: Ramp = Ramp(start=0.04, end=0.4)
    layer_decay: float = Field(default=1.0, gt=0.0, le=1.0)
    patch_embed_lr: PositiveFloat = 0.2
    clip_norm: PositiveFloat | None = 3.0
    freeze_prototypes: Share = Field(default=0.0, ge=0.0, le=1.0)
    teacher_momentum: Ramp = Ramp(start=0.992, end=1.0)

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        ends = (self.teacher_momentum.start, self.teacher_momentum.end)
        if not all(0 <= end <= 1 for end in ends):
            msg = "teacher_momentum needs to stay within 0 and 1, such as 0.992 to 1"
            raise ValueError(msg)
        return self


class EncoderUse(Frozen):
    """How the trained encoder is to be used; written into its folder.

    Attributes:
        tile_px: Edge of the tiles it embeds, pixels at its mpp; ``views.global_px`` if None.
        mpp: Resolution of those tiles; the most drawn one if None.
        pooling: ``cls``, or ``cls+mean`` with the mean of the patch tokens beside it (Virchow2).
    """

    tile_px: PositiveInt | None = None
    mpp: PositiveFloat | None = None
    pooling: Literal["cls", "cls+mean"] = "cls"


class TilePretrainConfig(Frozen):
    """A whole tile-encoder pretraining run.

    Attributes:
        seed: Seed of everything random: tiles, views, masks, weights, stochastic depth; 0 to
            2**32 - 1.
        steps: Optimiser steps.
        batch_size: Tiles a step.
        checkpoint_every: Steps between checkpoints.
        keep_checkpoints: How many of the newest checkpoints stay on disk.
        precision: ``auto`` (bf16 autocast where the processor computes it natively), ``bf16`` or
            ``fp32``.
        mean: Channel means taken off the pixels, in 0 to 1.
        std: Channel deviations they are divided by.
        tiles: Which tiles are drawn.
        views: How views are cut and coloured.
        model: The vision transformer.
        head: The projection head.
        objective: The loss.
        optimizer: The optimiser and its schedules.
        encoder: How the trained encoder is to be used.
    """

    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    steps: PositiveInt
    batch_size: int = Field(ge=2)
    checkpoint_every: PositiveInt = 100
    keep_checkpoints: PositiveInt = 2
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.5, 0.5, 0.5)
    tiles: TileSource
    views: MultiCropSpec
    model: Architecture
    head: Head
    objective: Objective
    optimizer: Optimisation
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

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.views.n_global != 2:
            msg = "views.n_global needs to be 2, each the other's target"
            raise ValueError(msg)
        if self.tiles.most_drawn_mpp is None and self.encoder.mpp is None:
            msg = "encoder.mpp needs a value where tiles.magnifications is a range"
            raise ValueError(msg)
        edges = {
            "views.global_px": self.views.global_px,
            "views.local_px": self.views.local_px,
            "encoder.tile_px": self.tile_px,
        }
        for name, crop_px in edges.items():
            if crop_px % self.model.patch_px:
                msg = f"{name} needs a multiple of model.patch_px={self.model.patch_px}"
                raise ValueError(msg)
        if self.model.width % self.model.n_heads:
            msg = f"model.n_heads={self.model.n_heads} needs to divide model.width"
            raise ValueError(msg)
        return self
