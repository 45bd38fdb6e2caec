"""What is fine-tuned, as it stands in a recipe: slide encoder, pooling, head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from anlage.models.bag_pooling.kinds import POOLINGS, WITH_CLASSES, build_pooling
from anlage.models.slide_sizes import SIZES
from anlage.models.without_weights import without_weights
from anlage.training.section import Section

Dropout = Annotated[float, Field(ge=0.0, lt=1.0)]
DEFAULT_POOLING = "gated_abmil"
OF_THE_BAGS = ("input_width", "n_classes")  # arguments of a pooling that no recipe decides


class SlideEncoderChoice(Section):
    """The slide encoder below the head, and where its weights come from.

    Attributes:
        init: A slide encoder's folder or a preset, as ``anlage encoders`` lists them; None for
            random weights of ``size``. ``--slide-encoder`` takes its place.
        size: ``tiny``, ``base`` or ``gigapath``; of random weights only.
        frozen: Whether its weights stay as they are; it then runs without dropout too.
        dropout: While training, in place of what it was pretrained with; None keeps that.
        stochastic_depth: Likewise.
        segments: Segments of dilated attention in place of its own, tokens; as many as it has.
        grid_um: Edge of a cell of its grid, micrometres; of random weights only, None for 128.
    """

    init: str | None = None
    size: str | None = None
    frozen: bool = False
    dropout: Dropout | None = None
    stochastic_depth: Dropout | None = None
    segments: tuple[PositiveInt, ...] | None = None
    grid_um: PositiveFloat | None = None

    @model_validator(mode="after")
    def _weights_are_of_something(self) -> Self:
        if self.init is None and self.size not in SIZES:
            msg = f"needs init, or a size of {', '.join(SIZES)}; got size={self.size}"
            raise ValueError(msg)
        if self.init is not None and self.size is not None:
            msg = f"init={self.init} brings its size; got size={self.size} too. Leave one out"
            raise ValueError(msg)
        if self.init is not None and self.grid_um is not None:
            msg = f"init={self.init} brings its grid; got grid_um={self.grid_um:g}. Leave it out"
            raise ValueError(msg)
        if self.frozen and self.size is not None:
            msg = "frozen needs init; random weights are not worth keeping"
            raise ValueError(msg)
        return self


class ModelChoice(Section):
    """From tile embeddings to the prediction.

    Attributes:
        slide_encoder: Encoder over the tiles of a slide; None pools the tile embeddings themselves.
        route: What the head gets: ``pool`` (a pooling of the tiles, in context where there is a
            slide encoder), ``cls`` (states of the slide token) or ``mean`` (means of the tiles).
        layers: States of the slide encoder that ``cls`` and ``mean`` put side by side, 0 (its
            embedded input) to its depth; None for its output.
        pooling: ``kind`` of the pooling, and its settings; a name alone takes its own settings.
            None is gated ABMIL of the route ``pool``, and nothing of the others.
        instance_weight: Share of CLAM's loss of single tiles in the loss; 0 without it.
        shortcut: Give the head the pooled tile embeddings themselves beside those in context.
        dropout: Before the head while training.
    """

    slide_encoder: SlideEncoderChoice | None = None
    route: Literal["pool", "cls", "mean"] = "pool"
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    pooling: dict[str, Any] | None = None
    instance_weight: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    shortcut: bool = False
    dropout: Dropout = 0.0

    @model_validator(mode="before")
    @classmethod
    def _named_pooling(cls, given: object) -> object:
        if not isinstance(given, Mapping):
            return given
        pooling = given.get("pooling")
        if pooling is None and given.get("route", "pool") == "pool":
            pooling = DEFAULT_POOLING
        return {**given, "pooling": {"kind": pooling} if isinstance(pooling, str) else pooling}

    @model_validator(mode="after")
    def _route_has_what_it_needs(self) -> Self:
        if self.route != "pool" and self.slide_encoder is None:
            msg = f"route={self.route} needs a slide_encoder. Set one, or route=pool"
            raise ValueError(msg)
        if self.layers is not None and self.route == "pool":
            msg = "layers are of the routes cls and mean. Leave them out, or choose such a route"
            raise ValueError(msg)
        if self.route != "pool" and self.pooling is not None:
            msg = f"pooling is of route=pool; got route={self.route}. Set model.pooling=null"
            raise ValueError(msg)
        kind = None if self.pooling is None else self.pooling.get("kind")
        if self.instance_weight and kind not in WITH_CLASSES:
            msg = "instance_weight is of the poolings clam_sb and clam_mb. Leave it out"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _pooling_can_be_built(self) -> Self:
        if self.pooling is None:
            return self
        if not isinstance(self.pooling.get("kind"), str):
            msg = f"pooling needs its kind, one of the kinds {', '.join(POOLINGS)}"
            raise ValueError(msg)
        if taken := [name for name in OF_THE_BAGS if name in self.pooling]:
            msg = f"{taken[0]} follows from the bags and the task. Leave it out of the pooling"
            raise ValueError(msg)
        with without_weights():
            build_pooling(**self.pooling, input_width=64)
        return self
