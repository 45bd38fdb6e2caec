"""Published slide encoders by name: what each is, where it lies, and whose bags it takes.

No weights were at hand: that a file of the published format gives what the official code gives is
tested with made-up weights (tests/encoders/test_slide_weights.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ConfigDict

from anlage.encoders.slide_encoder import TileEncoderFacts
from anlage.models.slide_encoder import SlidePooling
from anlage.models.slide_sizes import SIZES


class SlidePreset(BaseModel):
    """A published slide encoder.

    Attributes:
        name: What it is called here.
        label: Its architecture in short.
        architecture: Keyword arguments of ``SlideEncoder``.
        repo: Repository on the Hugging Face hub.
        files: Weight files to look for there, in this order.
        licence: Licence of the weights.
        gated: Whether its page asks for an account and an agreement.
        tile_encoder: Whose bags it takes.
        grid_um: Edge of a cell of the slide's grid, micrometres.
        pooling: See ``SlideEncoderConfig``.
        verified: The source that confirms it; None for none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    label: str
    architecture: dict[str, Any]
    repo: str
    files: tuple[str, ...]
    licence: str
    gated: bool
    tile_encoder: TileEncoderFacts
    grid_um: float
    pooling: SlidePooling = "cls"
    verified: str | None = None

    @property
    def width(self) -> int:
        """Width of a slide embedding."""
        return int(self.architecture["width"])


TABLE = (
    SlidePreset(
        name="prov-gigapath-slide",
        label="LongNet, 12 layers, 768 wide",
        # As trained: zero padding takes part, and 0.25 and 0.1 is what the official code leaves on.
        architecture={
            "input_width": 1536,
            **SIZES["gigapath"],
            "pad": "zero",
            "dropout": 0.25,
            "stochastic_depth": 0.1,
        },
        repo="prov-gigapath/prov-gigapath",
        files=("slide_encoder.pth",),
        licence="Apache-2.0 with conditions",
        gated=True,
        tile_encoder=TileEncoderFacts(name="prov-gigapath", mpp=0.5, tile_px=224, width=1536),
        grid_um=128.0,
        verified="its gigapath/slide_encoder.py (gigapath_slide_enc12l768d)",
    ),
)
SLIDE_PRESETS: Mapping[str, SlidePreset] = MappingProxyType(
    {preset.name: preset for preset in TABLE}
)
