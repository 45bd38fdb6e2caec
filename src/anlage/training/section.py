"""What the sections of a training recipe are made of."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0.0, le=1.0)]  # of a run, of a batch, of an area


class Section(BaseModel):
    """A part of a recipe: immutable, no key it does not know, no NaN and no infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Ramp(Section):
    """A value that changes during training, from ``start`` to ``end``.

    Attributes:
        start: Value at step 0.
        end: Value from ``over`` on.
        over: Share of the run after which ``end`` is reached, 0 to 1.
        shape: ``linear`` or ``cosine``.
    """

    start: float
    end: float
    over: Share = 1.0
    shape: Literal["linear", "cosine"] = "cosine"
