"""The networks of a run, as they stand in a recipe: the transformer and its projection heads."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from anlage.models.sizes import size_arguments
from anlage.training.section import Section


class Architecture(Section):
    """The vision transformer; the fields are the arguments of ``VisionTransformer``.

    ``size: NAME`` fills in the fields of a published size (``models/sizes.py``); fields beside it
    change it. The resolved recipe holds the fields, not the name.

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

    @model_validator(mode="before")
    @classmethod
    def _of_named_size(cls, given: Any) -> Any:  # noqa: ANN401 - whatever the recipe holds
        if not isinstance(given, dict) or "size" not in given:
            return given
        fields = {key: value for key, value in given.items() if key != "size"}
        return {**size_arguments(given["size"]), **fields}

    @model_validator(mode="after")
    def _whole_patches(self) -> Self:
        if self.image_px % self.patch_px:
            msg = f"image_px needs a multiple of patch_px={self.patch_px}"
            raise ValueError(msg)
        return self


class Head(Section):
    """A projection head: an MLP to a bottleneck, then prototypes.

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
