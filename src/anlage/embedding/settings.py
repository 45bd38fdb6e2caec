"""How slides are embedded: the grid, the batch, the threads, and what an encoder makes of these."""

from __future__ import annotations

from dataclasses import dataclass

from anlage.embedding.shard import Shard
from anlage.encoders.tile_encoder import EncoderConfig
from anlage.slides.colour import Colour
from anlage.tiles.spec import TileSpec


class OverlapError(ValueError):
    """Tiles would overlap by their whole edge, which is the encoder's where none is chosen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedSettings:
    """What one may choose of an embedding, beside its encoder and its slides.

    Attributes:
        mpp: Resolution of the tiles, micrometres per pixel; None for the encoder's own.
        tile_px: Edge of the tiles, pixels at ``mpp``; None for the encoder's own.
        stride_px: Step of the grid, pixels at ``mpp``; None for the tile's edge less the overlap.
        overlap_px: Pixels that neighbouring tiles share, less than their edge; 0 if None.
        min_tissue: Smallest tissue fraction of a tile, 0 to 1.
        batch_size: Tiles of a forward pass; no embedding depends on it.
        threads: Threads that read tiles.
        colour: "srgb" brings each slide's tiles into sRGB by its own profile, where it has one;
            "stored" leaves them. None for what the encoder was trained on.
        patch_tokens: Also write ``<slide_id>.patch_tokens.npy`` beside each bag.
        shard: Embed this part of the catalogue alone.

    Raises:
        ValueError: If one is out of range.
    """

    mpp: float | None = None
    tile_px: int | None = None
    stride_px: int | None = None
    overlap_px: int | None = None
    min_tissue: float = 0.25
    batch_size: int = 64
    threads: int = 2
    colour: Colour | None = None
    patch_tokens: bool = False
    shard: Shard | None = None

    def __post_init__(self) -> None:
        both = (self.stride_px, self.overlap_px)
        rules = {
            "batch_size of at least 1": (self.batch_size, self.batch_size >= 1),
            "threads of at least 1": (self.threads, self.threads >= 1),
            "mpp above 0": (self.mpp, self.mpp is None or self.mpp > 0),
            "tile_px of at least 1": (self.tile_px, self.tile_px is None or self.tile_px >= 1),
            "stride_px of at least 1": (
                self.stride_px,
                self.stride_px is None or self.stride_px >= 1,
            ),
            "overlap_px of at least 0": (
                self.overlap_px,
                self.overlap_px is None or self.overlap_px >= 0,
            ),
            "stride_px or overlap_px, not both": (both, None in both),
            "min_tissue from 0 to 1": (self.min_tissue, 0 <= self.min_tissue <= 1),
        }
        for rule, (got, holds) in rules.items():
            if not holds:
                msg = f"embed_tiles: needs {rule}; got {got}. Correct that value."
                raise ValueError(msg)

    def spec(self, config: EncoderConfig) -> TileSpec:
        """The tiles that an encoder gets.

        Raises:
            OverlapError: If they would overlap by their whole edge.
        """
        tile_px = config.tile_px if self.tile_px is None else self.tile_px
        overlap_px = self.overlap_px or 0
        if overlap_px >= tile_px:
            msg = (
                f"embed_tiles: needs overlap_px below the tile's edge of {tile_px}; got "
                f"{overlap_px}. Half the edge is usual where tiles overlap."
            )
            raise OverlapError(msg)
        return TileSpec(
            size_px=tile_px,
            mpp=config.mpp if self.mpp is None else self.mpp,
            stride_px=tile_px - overlap_px if self.stride_px is None else self.stride_px,
            min_tissue=self.min_tissue,
        )


def departures(config: EncoderConfig, spec: TileSpec, colour: Colour) -> list[str]:
    """In what the tiles are not those that an encoder was trained on, each in words.

    A published encoder that was trained at several resolutions departs at none of them.
    """
    found = []
    trained_at = config.provenance.get("mpps") or [config.mpp]
    if spec.mpp not in trained_at:
        own = ", ".join(f"{mpp:g}" for mpp in trained_at)
        found.append(f"tiles at {spec.mpp:g} mpp; the encoder was trained at {own}")
    if spec.size_px != config.tile_px:
        found.append(f"tiles of {spec.size_px} px; the encoder was trained on {config.tile_px}")
    if colour != config.colour:
        found.append(f"tiles in {colour} colours; the encoder was trained on {config.colour}")
    return found
