"""The slide encoder as it stands in a recipe."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from anlage.models.slide_sizes import SIZES
from anlage.training.section import Section

Rate = Field(default=0.0, ge=0.0, lt=1.0)


class SlideArchitecture(Section):
    """The slide encoder; the fields are the arguments of ``SlideEncoder`` but ``input_width``.

    ``size: NAME`` fills in the fields of a known size; fields beside it change it. The resolved
    recipe holds the fields, not the name.

    Attributes:
        width: Width D of a token, a multiple of 4.
        depth: Number of blocks.
        n_heads: Attention heads; must divide ``width``.
        mlp_ratio: Hidden width of the feed-forward layer over ``width``.
        segments: Segment of each branch of dilated attention, tokens.
        dilations: Dilation of each branch.
        head_phase: Which token of a segment a head begins at: ``torchscale``'s rule, or the
            ``paper``'s.
        pad: What a segment that is not full holds: ``zero`` keys as GigaPath's weights were made
            with, or none (``masked``).
        dropout: Share of values dropped in training.
        stochastic_depth: Share of bags that skip a branch in the last block; it rises from 0.
    """

    width: PositiveInt
    depth: PositiveInt
    n_heads: PositiveInt
    mlp_ratio: PositiveFloat = 4.0
    segments: tuple[PositiveInt, ...] = Field(min_length=1)
    dilations: tuple[PositiveInt, ...] = Field(min_length=1)
    head_phase: Literal["torchscale", "paper"] = "torchscale"
    pad: Literal["zero", "masked"] = "masked"
    dropout: float = Rate
    stochastic_depth: float = Rate

    @model_validator(mode="before")
    @classmethod
    def _of_named_size(cls, given: Any) -> Any:  # noqa: ANN401 - whatever the recipe holds
        if not isinstance(given, dict) or "size" not in given:
            return given
        fields = {key: value for key, value in given.items() if key != "size"}
        name = given["size"]
        if not isinstance(name, str) or name not in SIZES:
            msg = f"size needs one of {', '.join(SIZES)}; got {name!r}"
            raise ValueError(msg)
        return {**SIZES[name], **fields}

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        refuse_unfit_sizes(self.width, self.n_heads, self.segments, self.dilations)
        return self


def refuse_unfit_sizes(
    width: int, n_heads: int, segments: tuple[int, ...], dilations: tuple[int, ...]
) -> None:
    """Refuse sizes of LongNet blocks that do not fit each other.

    Raises:
        ValueError: If so.
    """
    if width % n_heads or width % 4:
        msg = f"width={width} needs to be a multiple of 4 and of n_heads={n_heads}"
        raise ValueError(msg)
    if len(segments) != len(dilations):
        msg = f"segments and dilations need one value a branch; got {segments} and {dilations}"
        raise ValueError(msg)
