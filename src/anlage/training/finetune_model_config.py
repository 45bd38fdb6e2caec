"""What is fine-tuned, as it stands in a recipe: slide encoder, pooling, head."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from anlage.models.bag_pooling.kinds import build_pooling
from anlage.models.slide_sizes import SIZES
from anlage.models.without_weights import without_weights
from anlage.training.section import Section

Dropout = Annotated[float, Field(ge=0.0, lt=1.0)]


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
        grid_um: Edge of a cell of its grid, micrometres; of random weights only.
    """

    init: str | None = None
    size: str | None = None
    frozen: bool = False
    dropout: Dropout | None = None
    stochastic_depth: Dropout | None = None
    segments: tuple[PositiveInt, ...] | None = None
    grid_um: PositiveFloat = 128.0

    @model_validator(mode="after")
    def _weights_are_of_something(self) -> Self:
        if self.init is None and self.size not in SIZES:
            msg = f"needs init, or a size of {', '.join(SIZES)}; got size={self.size}"
            raise ValueError(msg)
        if self.init is not None and self.size is not None:
            msg = f"init={self.init} brings its size; got size={self.size} too. Leave one out"
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
        instance_weight: Share of CLAM's loss of single tiles in the loss; 0 without it.
        shortcut: Give the head the pooled tile embeddings themselves beside those in context.
        dropout: Before the head while training.
    """

    slide_encoder: SlideEncoderChoice | None = None
    route: Literal["pool", "cls", "mean"] = "pool"
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    pooling: dict[str, Any] = Field(default_factory=lambda: {"kind": "gated_abmil"})
    instance_weight: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    shortcut: bool = False
    dropout: Dropout = 0.0

    @field_validator("pooling", mode="before")
    @classmethod
    def _named_pooling(cls, given: object) -> object:
        return {"kind": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _route_has_what_it_needs(self) -> Self:
        if self.route != "pool" and self.slide_encoder is None:
            msg = f"route={self.route} needs a slide_encoder. Set one, or route=pool"
            raise ValueError(msg)
        if self.layers is not None and self.route == "pool":
            msg = "layers are of the routes cls and mean. Leave them out, or choose such a route"
            raise ValueError(msg)
        if self.instance_weight and not str(self.pooling.get("kind")).startswith("clam"):
            msg = "instance_weight is of the poolings clam_sb and clam_mb. Leave it out"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _pooling_can_be_built(self) -> Self:
        if "kind" not in self.pooling:
            msg = "pooling needs its kind, such as gated_abmil"
            raise ValueError(msg)
        with without_weights():
            build_pooling(**self.pooling, input_width=64)
        return self
