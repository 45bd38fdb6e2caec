"""What a slide-encoder pretraining run is: the frozen model behind its recipes."""

from __future__ import annotations

from math import ceil
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from anlage.training.engine_config import Engine
from anlage.training.optimizer_config import Decay, Optimisation
from anlage.training.section import Ramp, Section, Share
from anlage.training.slide_pretraining.architecture import SlideArchitecture, refuse_unfit_sizes

MAX_SEED = 2**32 - 1  # the most that every library takes
Tiles = Annotated[int, Field(ge=2)]  # one to see and one to predict


class Decoder(Section):
    """The decoder that is thrown away after pretraining; arguments of ``SlideDecoder``.

    Attributes:
        width: Width of a token, a multiple of 4.
        depth: Number of blocks.
        n_heads: Attention heads; must divide ``width``.
        mlp_ratio: Hidden width of the feed-forward layer over ``width``.
    """

    width: PositiveInt
    depth: PositiveInt
    n_heads: PositiveInt
    mlp_ratio: PositiveFloat = 4.0


class BagSource(Section):
    """Which bags are trained on, and how much of each.

    Attributes:
        grid_um: Edge of a cell of the grid that tiles lie on, micrometres; None for the step
            between the tiles of the bags.
        max_tiles: Most tiles of a bag that one step takes; of a larger one a random share is
            neither seen nor predicted. None for all of them.
        split: Value of the table's column ``split`` that bags of training have; None for all bags.
    """

    grid_um: PositiveFloat | None = None
    max_tiles: Tiles | None = None
    split: str | None = None


class HeldOut(Section):
    """Bags that are never trained on, on which the masked error is measured.

    Attributes:
        share: Share of the patients whose bags they are; 0 for none.
        split: Value of the table's column ``split`` that they have; in place of a share.
        most: Most bags that are measured, the first by their hash.
    """

    share: float = Field(default=0.05, ge=0.0, lt=1.0)
    split: str | None = None
    most: PositiveInt = 64

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if self.split is not None and self.share > 0:
            msg = f"needs share or split; got share={self.share:g} and split={self.split!r}"
            raise ValueError(msg)
        return self


class CellViews(Section):
    """How the cells of a bag's tiles change from draw to draw, in this order.

    Attributes:
        crop: Edge of a random window over that of the bag, on each axis; 1 for the whole bag.
        n_grid: Edge of the grid inside which the bag is put anywhere, cells.
        hflip_probability: Share of draws that are mirrored left to right.
        vflip_probability: Share of draws that are mirrored top to bottom.
    """

    crop: float = Field(default=1.0, gt=0.0, le=1.0)
    n_grid: PositiveInt = 1000
    hflip_probability: Share = 0.0
    vflip_probability: Share = 0.0


class SlideOptimisation(Section):
    """AdamW with a linear warm-up and a cosine.

    Attributes:
        peak_lr: Learning rate after the warm-up, for this recipe's batch (not scaled by it).
        min_lr: Learning rate at the end.
        warmup_epochs: Epochs in which the rate rises linearly from 0.
        betas: The two decay rates.
        epsilon: Added to the root of the second moment.
        weight_decay: Weight decay; biases and norms are spared.
        clip_norm: Largest gradient norm, for encoder and decoder each; None for none.
    """

    peak_lr: PositiveFloat
    min_lr: float = Field(default=1e-6, ge=0.0)
    warmup_epochs: NonNegativeFloat = 1.0
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    epsilon: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.05
    clip_norm: PositiveFloat | None = None


class SlideWatch(Section):
    """What a run looks at as it goes, beside its loss.

    Attributes:
        every: Steps between two looks at the held-out bags and at the labelled slides; None for
            never, which needs none to be held out.
        label: Column of the table of slides that probes predict from slide embeddings; None for no
            probe.
        neighbours: k of the kNN probe.
        probe_steps: Steps of the linear probe.
        keep_best: Probe by which the best encoder is kept in ``RUN/best``; None for none.
        patience: Looks without a better probe after which the run ends; None for never.
    """

    every: PositiveInt | None = None
    label: str | None = None
    neighbours: PositiveInt = 20
    probe_steps: PositiveInt = 500
    keep_best: Literal["knn", "linear"] | None = "knn"
    patience: PositiveInt | None = None

    @model_validator(mode="after")
    def _patience_has_a_measure(self) -> Self:
        if self.patience is not None and (self.keep_best is None or self.every is None):
            msg = "patience needs every and keep_best, the probe that it waits for"
            raise ValueError(msg)
        return self


class SlideEngine(Section):
    """How the run uses its devices; what it learns does not depend on it.

    Attributes:
        kind: ``single`` (one device) or ``ddp`` (every rank holds the network); ``auto`` is
            ``single`` alone and ``ddp`` with others. The network is not sharded: the largest has
            fewer parameters than a step has activations.
        recompute: Whether blocks run again in the backward pass instead of being kept: memory for
            a third more time.
        timeout_s: Longest that a rank waits for the others, seconds.
    """

    kind: Literal["auto", "single", "ddp"] = "auto"
    recompute: bool = False
    timeout_s: PositiveFloat = 600.0


class SlideEncoderUse(Section):
    """How the trained encoder is to be used; written into its folder.

    Attributes:
        pooling: ``cls``, the slide token, or ``mean`` of the tiles in context.
    """

    pooling: Literal["cls", "mean"] = "cls"


class SlidePretrainConfig(Section):
    """A whole slide-encoder pretraining run: a masked autoencoder on bags.

    Attributes:
        seed: Seed of everything random: order, crops, masks, weights, dropout; 0 to 2**32 - 1.
        epochs: How often each bag is drawn.
        batch_size: Bags a step, over all ranks.
        accumulate: Parts a rank's bags of a step are taken in, one after the other; the step is
            that of the whole batch. Must divide ``batch_size``; may change when a run goes on.
        checkpoint_every: Steps between checkpoints.
        keep_checkpoints: How many of the newest checkpoints stay on disk.
        precision: ``auto`` (bf16 autocast where the processor computes it natively), ``bf16`` or
            ``fp32``.
        mask_ratio: Share of a bag's tiles that are hidden from the encoder and predicted.
        bags: Which bags are trained on.
        held_out: Which bags are kept to measure.
        views: How cells change from draw to draw.
        model: The slide encoder.
        decoder: The decoder; its branches of attention are the encoder's.
        optimizer: The optimiser and its schedule.
        watch: What is looked at beside the loss.
        engine: How the run uses its devices; may change when it goes on.
        encoder: How the trained encoder is to be used.
    """

    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    epochs: PositiveInt
    batch_size: PositiveInt
    accumulate: PositiveInt = 1
    checkpoint_every: PositiveInt = 100
    keep_checkpoints: PositiveInt = 2
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    mask_ratio: float = Field(default=0.75, gt=0.0, lt=1.0)
    bags: BagSource = BagSource()
    held_out: HeldOut = HeldOut()
    views: CellViews = CellViews()
    model: SlideArchitecture
    decoder: Decoder
    optimizer: SlideOptimisation
    watch: SlideWatch = SlideWatch()
    engine: SlideEngine = SlideEngine()
    encoder: SlideEncoderUse = SlideEncoderUse()

    def steps(self, n_bags: int) -> int:
        """Steps in which as many bags are drawn ``epochs`` times; the last may draw some more."""
        return ceil(self.epochs * n_bags / self.batch_size)

    @property
    def optimisation(self) -> Optimisation:
        """The optimiser's settings as the stages share them."""
        chosen = self.optimizer
        decay = chosen.weight_decay
        return Optimisation(
            peak_lr=chosen.peak_lr,
            min_lr=chosen.min_lr,
            warmup=chosen.warmup_epochs / self.epochs,
            betas=chosen.betas,
            epsilon=chosen.epsilon,
            weight_decay=Ramp(start=decay, end=decay, shape="linear"),
            patch_embed_lr=1.0,
            clip_norm=chosen.clip_norm,
        )

    @property
    def layout(self) -> Engine:
        """The engine's settings as the stages share them."""
        return Engine(kind=self.engine.kind, timeout_s=self.engine.timeout_s)

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.batch_size % self.accumulate:
            msg = f"accumulate={self.accumulate} needs to divide batch_size={self.batch_size}"
            raise ValueError(msg)
        if self.optimizer.warmup_epochs >= self.epochs:
            msg = f"optimizer.warmup_epochs needs to be below epochs={self.epochs}"
            raise ValueError(msg)
        if self.optimizer.min_lr > self.optimizer.peak_lr:
            msg = "optimizer.min_lr needs to be at most optimizer.peak_lr"
            raise ValueError(msg)
        holds_out = self.held_out.share > 0 or self.held_out.split is not None
        if holds_out and self.watch.every is None:
            msg = (
                "held_out keeps bags that are never measured: set watch.every, or held_out.share=0 "
                "and no held_out.split"
            )
            raise ValueError(msg)
        branches = self.model.segments, self.model.dilations
        refuse_unfit_sizes(self.decoder.width, self.decoder.n_heads, *branches)
        return self
