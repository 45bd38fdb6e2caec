"""A slide encoder: a network over bags, with the tile encoder and the grid it was made for.

Shape suffixes: T tiles of all bags, B bags, I width of a tile embedding, P width of a slide's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from anlage.bags.bag import NAMED, BagAttributes
from anlage.bags.bag_set import MAX_TILES, BagSet
from anlage.encoders.bundled import CONFIG
from anlage.encoders.network_folder import (
    read_config,
    read_network,
    save_network,
    unless_replaced,
)
from anlage.encoders.precision import DTYPES, Precision, resolved_precision
from anlage.encoders.tile_encoder import torch_device, weights_sha256
from anlage.errors import BagError, EncoderError
from anlage.folder_replacement import whole_folder
from anlage.models.slide_encoder import SlideEncoder, SlidePooling
from anlage.provenance import sha256_of_json

FORMAT: Final = "slide-encoder/1"
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
SAME_MPP = 0.02  # resolutions this far apart, as a share, are those of one nominal resolution
OTHER_NAMES = {"gigapath": "provgigapath"}  # as TRIDENT and STAMP call it, plain


class TileEncoderFacts(BaseModel):
    """The tile encoder whose bags a slide encoder takes.

    Attributes:
        name: What people call it.
        fingerprint: SHA-256 of its weights and transform; None where it is known by name alone.
        mpp: Resolution of the tiles, micrometres per pixel.
        tile_px: Edge of a tile, pixels at ``mpp``.
        width: Width of a tile embedding.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    fingerprint: str | None = None
    mpp: Positive
    tile_px: int = Field(gt=0)
    width: int = Field(gt=0)


def tile_encoder_of(bags: BagSet) -> TileEncoderFacts:
    """The tile encoder that made bags; without a fingerprint where they tell a name alone."""
    made = bags.attributes
    is_named = made.encoder_fingerprint.startswith(NAMED)
    return TileEncoderFacts(
        name=made.encoder_name or made.encoder_fingerprint.removeprefix(NAMED),
        fingerprint=None if is_named else made.encoder_fingerprint,
        mpp=made.mpp,
        tile_px=made.tile_px,
        width=bags.width,
    )


class SlideEncoderConfig(BaseModel):
    """All of a slide encoder but its weights; the ``config.json`` of its folder.

    Attributes:
        format: Format and version of the folder.
        architecture: Keyword arguments of ``SlideEncoder``.
        grid_um: Edge of a cell of the slide's grid, micrometres.
        tile_encoder: Whose bags it takes.
        pooling: ``cls``, the slide token; ``mean``, the mean of the tiles in context.
        provenance: What made it: recipe, run, step, bags' fingerprint, versions.
        weights_sha256: Checksum of the weights; ``save_slide_encoder`` fills it in.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["slide-encoder/1"] = FORMAT
    architecture: dict[str, Any]
    grid_um: Positive
    tile_encoder: TileEncoderFacts
    pooling: SlidePooling = "cls"
    provenance: dict[str, Any] = Field(default_factory=dict)
    weights_sha256: str | None = None


class OpenSlideEncoder:
    """Bags in, slide embeddings out.

    Takes the network over: moves it to the device and switches it to evaluation.

    Args:
        name: What it was opened by.
        config: Architecture, tile encoder, grid and pooling.
        network: The encoder that ``config.architecture`` describes.
        device: ``cpu``, ``cuda``, ``cuda:N``, or ``auto`` for CUDA where there is one.
        precision: As of a ``TileEncoder``.

    Attributes:
        name: As given.
        config: As given.
        network: On ``device``, in evaluation mode.
        device: Where it runs.
        precision: ``fp32``, ``bf16`` or ``fp16``.

    Raises:
        ValueError: If the device cannot compute in the precision asked for.
    """

    def __init__(
        self,
        name: str,
        config: SlideEncoderConfig,
        network: SlideEncoder,
        *,
        device: str | torch.device = "cpu",
        precision: Precision = "auto",
    ) -> None:
        self.name, self.config = name, config
        self.device = torch_device(device)
        self.precision = resolved_precision(precision, self.device)
        self.network = network.to(self.device).eval()

    @property
    def width(self) -> int:
        """Width P of a slide embedding."""
        return self.network.width

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over what decides an embedding: architecture, grid, pooling, tiles and weights.

        Not over the precision.
        """
        decides = {"format", "architecture", "grid_um", "pooling", "tile_encoder"}
        weights = weights_sha256(self.network.state_dict())
        return sha256_of_json([self.config.model_dump(mode="json", include=decides), weights])

    def embed(self, features_TD: Tensor, cell_T2: Tensor, lengths: Sequence[int]) -> Tensor:
        """Embed slides.

        Args:
            features_TD: (T, I) tile embeddings, bag after bag, of any floating dtype and device.
            cell_T2: (T, 2) int64 cells (x, y) of a grid of ``config.grid_um``.
            lengths: Tiles of each bag, each at least 1.

        Returns:
            (B, P) float32 on the encoder's device. A slide's does not depend on the others.

        Raises:
            ValueError: If shapes and lengths do not fit each other or the network.
        """
        dtype = DTYPES.get(self.precision)
        autocast = torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)
        with torch.no_grad(), autocast:
            pooled_BP = self.network.pooled(
                features_TD.to(self.device, non_blocking=True),
                cell_T2.to(self.device, non_blocking=True),
                lengths,
                pooling=self.config.pooling,
            )
        return pooled_BP.float()

    def refuse_bag(
        self, attributes: BagAttributes, *, width: int, n_tiles: int, place: str | Path
    ) -> None:
        """Refuse a bag that it was not made for.

        Args:
            attributes: What the bag was made from.
            width: Width of its embeddings.
            n_tiles: Its tiles.
            place: Where it is, for the message.

        Raises:
            BagError: If it is empty or too large, or of another encoder, width or resolution.
        """
        refuse_bag(self.config, attributes, width=width, n_tiles=n_tiles, place=place)


def refuse_bag(
    config: SlideEncoderConfig,
    attributes: BagAttributes,
    *,
    width: int,
    n_tiles: int,
    place: str | Path,
) -> None:
    """Refuse a bag that a slide encoder was not made for.

    A bag whose encoder has a fingerprint is compared with that of the slide encoder's; where one of
    the two is known by name alone, the names are, if both have one.

    Args:
        config: The slide encoder's.
        attributes: What the bag was made from.
        width: Width of its embeddings.
        n_tiles: Its tiles.
        place: Where it is, for the message.

    Raises:
        BagError: If it is empty or too large, or of another encoder, width or resolution.
    """
    made_for = config.tile_encoder
    if n_tiles == 0:
        raise BagError(place, "holds no tiles. Leave the slide out.")
    if n_tiles > MAX_TILES:
        msg = f"needs at most {MAX_TILES:,} tiles; got {n_tiles:,}. Embed larger tiles."
        raise BagError(place, msg)
    if width != made_for.width:
        msg = f"is {width} wide; the slide encoder takes {made_for.name}, {made_for.width} wide. "
        raise BagError(place, f"{msg}Embed the slide with that.")
    if _is_of_another_encoder(made_for, attributes):
        found = attributes.encoder_name or attributes.encoder_fingerprint[:12]
        msg = f"was made with encoder {found}; the slide encoder takes {_called(made_for)}. "
        raise BagError(place, f"{msg}Embed the slide with that.")
    if abs(attributes.mpp - made_for.mpp) > SAME_MPP * made_for.mpp:
        msg = f"is of tiles at {attributes.mpp:g} mpp; the slide encoder takes {made_for.mpp:g}. "
        raise BagError(place, f"{msg}Embed the slide at that.")


def save_slide_encoder(
    folder: str | Path, network: SlideEncoder, config: SlideEncoderConfig
) -> None:
    """Write a slide encoder's folder whole; one already there is replaced whole.

    Args:
        folder: Folder to make; it may be absent, empty, or a slide encoder's.
        network: On any device.
        config: Its description; the checksum of the weights is filled in.

    Raises:
        EncoderError: If the folder holds anything else, or a weight is not finite.
        ValueError: If the network is not of ``config.architecture``.
    """
    save_network(
        folder,
        network,
        config,
        build=lambda: SlideEncoder(**config.architecture),
        who="save_slide_encoder",
    )


def load_slide_encoder(
    folder: str | Path, *, device: str | torch.device = "cpu", precision: Precision = "auto"
) -> OpenSlideEncoder:
    """Open a slide encoder's folder, refusing whatever is not exactly what it says.

    Args:
        folder: A folder that ``save_slide_encoder`` wrote, such as ``RUN/encoder``.
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``.
        precision: As of a ``TileEncoder``.

    Returns:
        The encoder in evaluation mode, weights in float32. No random number is drawn.

    Raises:
        EncoderError: If a file is missing, cut short or of another version, a key is unknown, a
            tensor is missing, unexpected, misshapen or not finite, or the checksum does not match.
    """
    config, network = unless_replaced(lambda: whole_folder(folder), lambda: _load(folder))
    return OpenSlideEncoder(str(folder), config, network, device=device, precision=precision)


def _load(folder: str | Path) -> tuple[SlideEncoderConfig, SlideEncoder]:
    place = whole_folder(folder)
    if not (place / CONFIG).exists():
        what = f"holds no {CONFIG}" if place.is_dir() else "no such slide encoder folder"
        raise EncoderError(folder, f"{what}. Name one such as RUN/encoder.")
    config = read_config(place / CONFIG, SlideEncoderConfig, form=FORMAT)
    network = read_network(
        place,
        checksum=config.weights_sha256,
        build=lambda: SlideEncoder(**config.architecture),
    )
    if network.input_width != config.tile_encoder.width:
        msg = (
            f"needs input_width and the tile encoder's width to be one; got {network.input_width} "
            f"and {config.tile_encoder.width}. Correct the configuration."
        )
        raise EncoderError(place / CONFIG, msg)
    return config, network


def _is_of_another_encoder(made_for: TileEncoderFacts, attributes: BagAttributes) -> bool:
    found = attributes.encoder_fingerprint
    if made_for.fingerprint is not None and not found.startswith(NAMED):
        return found != made_for.fingerprint
    name = attributes.encoder_name or found.removeprefix(NAMED)
    known_by_name = attributes.encoder_name or found.startswith(NAMED)
    return bool(known_by_name) and _plain(name) != _plain(made_for.name)


def _plain(name: str) -> str:
    """A name without its repository's owner, case and marks."""
    letters = "".join(each for each in name.rpartition("/")[2].lower() if each.isalnum())
    return OTHER_NAMES.get(letters, letters)


def _called(made_for: TileEncoderFacts) -> str:
    if made_for.fingerprint is None:
        return made_for.name
    return f"{made_for.name} ({made_for.fingerprint[:12]})"
