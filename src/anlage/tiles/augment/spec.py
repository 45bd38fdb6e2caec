"""What views are made of one tile, as it stands in a recipe."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

Probability = Annotated[float, Field(ge=0, le=1)]
Edge = Annotated[int, Field(ge=1)]
LEAST_SINE = 0.05  # of the angle between two stains, times their lengths
Density = Annotated[float, Field(ge=-1, le=1)]


class MultiCropSpec(BaseModel):
    """Global and local crops of a tile, and how they are changed.

    Defaults are DINOv2's with Virchow2's vertical flip. ``resized`` is the random resized crop:
    the area is a part of the tile's, the aspect log-uniform. ``extended_context`` (Virchow2) reads
    a larger tile and cuts views at nearly native scale: a crop's edges are those of the view times
    (1 ± ``ect_scale``), its aspect within (1 + ``ect_aspect``) either way.

    Attributes:
        source_px: Edge of the tiles that are read, pixels.
        n_global: Global crops a tile.
        global_px: Edge of a global crop after resizing, pixels.
        n_local: Local crops a tile; may be 0.
        local_px: Edge of a local crop after resizing, pixels.
        mode: How the place and size of a crop are drawn.
        global_scale: Least and greatest area of a global crop, part of the tile's (``resized``).
        local_scale: The same of a local crop.
        aspect: Least and greatest width / height of a crop (``resized``).
        ect_scale: Half-width of the uniform scale about 1 (``extended_context``).
        ect_aspect: Greatest width / height, less 1 (``extended_context``).
        hflip_probability: Chance of a left-right flip of a view.
        vflip_probability: Chance of an up-down flip of a view.
        jitter: Strength of brightness, contrast, saturation (factors 1 ± x) and hue (turns, ± x).
        jitter_probability: Chance that a view is jittered, all four in a random order.
        stain_jitter: Strength s of a change of each stain's concentration before the jitter of
            colours: c becomes f c + o, f within 1 ± s and o within ± s; 0 switches it off.
        stain_jitter_probability: Chance that a view's stains are changed.
        stain_vectors: Optical densities of the two stains that are changed, as ``estimate_stains``
            finds them; none for haematoxylin, eosin and DAB (``HED-light``).
        grayscale_probability: Chance that a view loses its colour.
        global_blur_probability: Chance of a Gaussian blur, one for each global crop.
        local_blur_probability: Chance of a Gaussian blur of a local crop.
        blur_sigma: Least and greatest standard deviation of the blur, pixels of the view.
        blur_kernel_px: Odd width of the blur's kernel, pixels of the view.
        solarize_probability: Chance that bright values are inverted, one for each global crop.

    Source: Oquab et al. 2023, DINOv2, arXiv:2304.07193 and its DataAugmentationDINO; Zimmermann et
    al. 2024, Virchow2, arXiv:2408.00738 (the exact ranges of extended context are not published);
    ``jitter_stains`` for the stains.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source_px: Edge = 256
    n_global: int = Field(default=2, ge=1)
    global_px: Edge = 224
    n_local: int = Field(default=8, ge=0)
    local_px: Edge = 98
    mode: Literal["resized", "extended_context"] = "resized"
    global_scale: tuple[float, float] = (0.32, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.32)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    ect_scale: float = Field(default=0.1, ge=0, lt=1)
    ect_aspect: float = Field(default=0.05, ge=0, lt=1)
    hflip_probability: Probability = 0.5
    vflip_probability: Probability = 0.5
    jitter: tuple[Probability, Probability, Probability, Annotated[float, Field(ge=0, le=0.5)]] = (
        *(0.4, 0.4, 0.2, 0.1),
    )
    jitter_probability: Probability = 0.8
    stain_jitter: float = Field(default=0.0, ge=0, lt=1)
    stain_jitter_probability: Probability = 0.5
    stain_vectors: tuple[tuple[Density, Density, Density], ...] | None = None
    grayscale_probability: Probability = 0.2
    global_blur_probability: tuple[Probability, ...] = (1.0, 0.1)
    local_blur_probability: Probability = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_kernel_px: int = Field(default=9, ge=1)
    solarize_probability: tuple[Probability, ...] = (0.0, 0.2)

    @property
    def n_views(self) -> int:
        """Crops a tile, global and local."""
        return self.n_global + self.n_local

    @property
    def largest_stretch(self) -> float:
        """Greatest edge of an extended-context crop over the edge of its view."""
        return float((1 + self.ect_scale) * (1 + self.ect_aspect) ** 0.5)

    @model_validator(mode="after")
    def _ranges_are_ordered(self) -> Self:
        for name in ("global_scale", "local_scale", "aspect", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                msg = (
                    f"{name} needs 0 < least <= greatest; got ({low}, {high}). Swap or raise them."
                )
                raise ValueError(msg)
        for name in ("global_scale", "local_scale"):
            if getattr(self, name)[1] > 1:
                msg = (
                    f"{name} needs areas of at most 1, the whole tile; got {getattr(self, name)}. "
                    "Lower the greatest area."
                )
                raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _stains_are_two(self) -> Self:
        if self.stain_vectors is None:
            return self
        given = np.array(self.stain_vectors)
        if len(given) != 2 or np.linalg.norm(np.cross(*given)) < LEAST_SINE:
            msg = (
                "stain_vectors needs two densities of different directions; got "
                f"{given.tolist()}. Take what estimate_stains finds, or leave it out for HED."
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _chances_fit_the_global_crops(self) -> Self:
        for name in ("global_blur_probability", "solarize_probability"):
            given = len(getattr(self, name))
            if given != self.n_global:
                msg = (
                    f"{name} needs one chance for each of the {self.n_global} global crops; "
                    f"got {given}. Give {self.n_global} numbers."
                )
                raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _kernel_fits_the_views(self) -> Self:
        smallest = min(self.global_px, self.local_px) if self.n_local else self.global_px
        if self.blur_kernel_px % 2 == 0 or self.blur_kernel_px // 2 >= smallest:
            msg = (
                "blur_kernel_px needs to be odd and under twice the smallest view "
                f"({smallest} px); got {self.blur_kernel_px}. DINOv2 takes 9."
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _crops_fit_the_source(self) -> Self:
        if self.mode != "extended_context":
            return self
        for name in ("global_px", "local_px"):
            if name == "local_px" and not self.n_local:
                continue
            needed = round(getattr(self, name) * self.largest_stretch)
            if needed > self.source_px:
                msg = (
                    f"extended_context with {name}={getattr(self, name)} needs tiles of at least "
                    f"{needed} px; got source_px={self.source_px}. Raise source_px, or lower "
                    f"{name}, ect_scale or ect_aspect."
                )
                raise ValueError(msg)
        return self
