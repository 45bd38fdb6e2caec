"""Which tiles a run draws and how they are read, as it stands in a recipe."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, PositiveFloat, PositiveInt, Tag, model_validator

from anlage.slides.colour import Colour
from anlage.slides.levels import Decode
from anlage.tiles.filters import TileFilters
from anlage.tiles.weights import Base
from anlage.training.section import Section, Share


class MagnificationRange(Section):
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


class TileSource(Section):
    """Which tiles are drawn and how they are read; their edge is ``views.source_px``.

    Attributes:
        list: Tile list (``anlage curate``) that all tiles are drawn from, by its weights; then no
            mask is looked at, and ``magnifications`` are those of the list. None for all tissue.
        magnifications: Shares of the resolutions, µm per pixel -> weight; or ``{low, high, law}``.
        min_tissue: Smallest tissue fraction of a tile, 0 to 1.
        split: Only slides with this value in the catalogue's ``split`` column; None for all.
        base: Slides weigh the same (``slide``) or by their tissue (``tissue_area``).
        balance: Catalogue column -> alpha, 0 to 1: weights are divided by the frequency of the
            slide's value to that power, for every column; 0 leaves out one that a parent named.
        per_region: Tiles cut from one decoded region. More are read faster and are more alike:
            those of one region lie within one window of steps, with at least 63 other regions.
        filters: What else a tile must pass; a rejected one is drawn again, counted.
        on_error: ``resample``: a tile that cannot be read is drawn again, counted; ``raise``.
        quarantine_after: Errors after which a slide is drawn no more; None for never.
        decode: ``scaled``: JPEG tiles are decoded at 1/2, 1/4 or 1/8 where the resolution allows;
            ``full``: always whole.
        colour: ``stored``, or ``srgb`` by each slide's ICC profile, where it has one.
    """

    list: str | None = None
    magnifications: Annotated[
        Annotated[dict[PositiveFloat, PositiveFloat], Tag("(shares)")]
        | Annotated[MagnificationRange, Tag("(range)")],
        Discriminator(_shares_or_range),
    ]
    min_tissue: Share = 0.5
    split: str | None = None
    base: Base = "slide"
    balance: dict[str, Share] = Field(default_factory=dict)
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

    @model_validator(mode="after")
    def _list_says_it_all(self) -> Self:
        if self.list is None:
            return self
        rules = {
            "magnifications as shares of its resolutions, such as {0.5: 1}": not isinstance(
                self.magnifications, MagnificationRange
            ),
            "per_region=1, since its tiles do not lie beside each other": self.per_region == 1,
            "base=slide; its weights say how often a tile is drawn": self.base == "slide",
            "no balance (alphas of 0); its weights say how often a tile is drawn": not any(
                self.balance.values()
            ),
        }
        for rule, holds in rules.items():
            if not holds:
                msg = f"list needs {rule}"
                raise ValueError(msg)
        return self
