"""Which tiles are worth training on, judged by their pixels after they were read.

Shape suffixes: S tile edge, 3 colour channels.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat

from anlage.slides.levels import TOLERANCE

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Bound = Annotated[int, Field(ge=0, le=255)]
Bounds = tuple[Bound, Bound]
Ink = Literal["blue", "green", "red", "black"]

# Least and greatest hue (0 to 179, half degrees), saturation and value, as OpenCV counts them.
INKS: dict[Ink, tuple[tuple[Bounds, Bounds, Bounds], ...]] = {
    "blue": (((95, 118), (110, 255), (41, 255)),),
    "green": (((40, 94), (70, 255), (41, 255)),),
    "red": (((0, 4), (190, 255), (80, 255)), ((177, 179), (190, 255), (80, 255))),
    "black": (((0, 179), (0, 255), (0, 40)),),
}


class TileFilter(Protocol):
    """Says of one tile whether it is kept; pure, and safe to call from many threads."""

    name: ClassVar[str]

    def keeps(self, tile_SS3: NDArray[np.uint8], *, mpp: float) -> bool:
        """Whether the tile is kept.

        Args:
            tile_SS3: (S, S, 3) uint8 RGB.
            mpp: Its resolution, micrometres per pixel.
        """
        ...


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class HsvTissueFilter(_Settings):
    """Keeps tiles of which enough pixels have the colour of stained tissue.

    Attributes:
        min_share: Least share of pixels within all three bounds.
        hue: Least and greatest hue, half degrees, 0 to 179 (180 is past the last).
        saturation: Least and greatest saturation, 0 to 255.
        value: Least and greatest value, 0 to 255.

    Source: Karasikov et al. 2025, Midnight, arXiv:2504.05186 (0.60 of the pixels within these
    bounds, which Vorontsov et al. 2024, Virchow, arXiv:2309.07778 uses for its tissue masks). The
    bounds leave out yellow to green: DAB brown (IHC) and green counterstains are not "tissue".
    """

    name: ClassVar[str] = "hsv"
    min_share: Share = 0.6
    hue: Bounds = (90, 180)
    saturation: Bounds = (8, 255)
    value: Bounds = (103, 255)

    def keeps(self, tile_SS3: NDArray[np.uint8], *, mpp: float) -> bool:
        """Whether enough pixels lie within the bounds."""
        bounds = (self.hue, self.saturation, self.value)
        share = _share_within(cv2.cvtColor(tile_SS3, cv2.COLOR_RGB2HSV), (bounds,))
        return share >= self.min_share


class BlurFilter(_Settings):
    """Keeps tiles that are in focus: their luminance has a Laplacian that varies enough.

    A finer tile is first reduced by area to ``mpp``, so that one threshold serves all
    magnifications up to it. At the defaults none of 2,546 sharp H&E tiles falls (996 of 15 organs
    at 0.5 mpp, 1,550 of lung and colon), and every one does after a Gaussian blur of 2.5 µm.

    Attributes:
        mpp: Resolution at which focus is judged; no tile may be coarser.
        min_variance: Least variance of the 3 x 3 Laplacian, grey levels squared.
    """

    name: ClassVar[str] = "blur"
    mpp: PositiveFloat = 1.0
    min_variance: PositiveFloat = 50.0

    def keeps(self, tile_SS3: NDArray[np.uint8], *, mpp: float) -> bool:
        """Whether the tile is sharp.

        Raises:
            ValueError: If the tile is coarser than the filter's mpp.
        """
        if mpp > self.mpp * (1 + TOLERANCE):
            msg = (
                f"BlurFilter: needs tiles of at most {self.mpp:g} mpp; got {mpp:g}. "
                "Raise its mpp to the coarsest that is drawn, and judge its threshold anew."
            )
            raise ValueError(msg)
        grey = cv2.cvtColor(tile_SS3, cv2.COLOR_RGB2GRAY)
        size = max(round(len(grey) * mpp / self.mpp), 1)
        if size < len(grey):
            grey = cv2.resize(grey, (size, size), interpolation=cv2.INTER_AREA)
        _, deviation = cv2.meanStdDev(cv2.Laplacian(grey, cv2.CV_32F))
        return float(deviation[0, 0]) ** 2 >= self.min_variance


class PenFilter(_Settings):
    """Keeps tiles that hold little marker ink.

    Ink is found by colour alone. At the defaults none of the H&E tiles tried is rejected (996 of
    15 organs, 1,550 of lung and colon, 349 of eight whole slides), nor one of 97 tiles of IHC with
    DAB, nor of 199 of PAS, PAS-Alcian blue, crystal violet and Warthin-Starry. Stains that have an
    ink's own colour are: every tile of a Giemsa slide (blue), five in six of a Grocott stain with
    light green. Leave that ink, or the filter, out for those.

    Attributes:
        max_share: Greatest share of pixels of ink.
        inks: Colours looked for.
    """

    name: ClassVar[str] = "pen"
    max_share: Share = 0.15
    inks: tuple[Ink, ...] = ("blue", "green", "red", "black")

    def keeps(self, tile_SS3: NDArray[np.uint8], *, mpp: float) -> bool:
        """Whether no more than the allowed share of pixels has an ink's colour."""
        boxes = tuple(box for ink in self.inks for box in INKS[ink])
        share = _share_within(cv2.cvtColor(tile_SS3, cv2.COLOR_RGB2HSV), boxes)
        return share <= self.max_share


class TileFilters(_Settings):
    """The filters of a recipe; each is off unless it is named.

    Attributes:
        hsv: Colour of tissue.
        blur: Focus.
        pen: Marker ink.
    """

    hsv: HsvTissueFilter | None = None
    blur: BlurFilter | None = None
    pen: PenFilter | None = None

    def chosen(self) -> tuple[TileFilter, ...]:
        """Those that are on, in the order in which they judge; the first to reject is counted."""
        return tuple(f for f in (self.hsv, self.blur, self.pen) if f is not None)


def _share_within(
    hsv_SS3: NDArray[np.uint8] | cv2.typing.MatLike,
    boxes: tuple[tuple[Bounds, Bounds, Bounds], ...],
) -> float:
    """Share of pixels that lie within one of the boxes, bounds included; boxes do not overlap."""
    n_within = 0
    for box in boxes:
        low, high = zip(*box, strict=True)
        n_within += cv2.countNonZero(cv2.inRange(hsv_SS3, low, high))
    return n_within / float(hsv_SS3.shape[0] * hsv_SS3.shape[1])
