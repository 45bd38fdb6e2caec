"""What an encoder is, without its network: enough to plan bags, and to tell of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from anlage.encoders.tile_encoder import EncoderConfig, TileEncoder


@dataclass(frozen=True, slots=True)
class EncoderFacts:
    """An encoder that is open somewhere else; the attributes are those of ``TileEncoder``.

    Attributes:
        config: Its tiles, transform and origin.
        fingerprint: Of architecture, transform, pooling and weights.
        precision: Its arithmetic, resolved.
        width: Embedding width.
        patch_px: Edge of a patch; None if it has no patch tokens.
        token_width: Width of a patch token; 0 if it has none.
        device: Where it runs there.
    """

    config: EncoderConfig
    fingerprint: str
    precision: str
    width: int
    patch_px: int | None
    token_width: int
    device: str

    @classmethod
    def of(cls, encoder: TileEncoder) -> Self:
        """The facts of an open encoder."""
        return cls(
            config=encoder.config,
            fingerprint=encoder.fingerprint,
            precision=encoder.precision,
            width=encoder.width,
            patch_px=encoder.patch_px,
            token_width=encoder.token_width if encoder.patch_px else 0,
            device=str(encoder.device),
        )


def token_shape(encoder: TileEncoder | EncoderFacts, *, tile_px: int) -> tuple[int, int]:
    """(N, E) of the patch tokens of a tile."""
    return (tile_px // (encoder.patch_px or 1)) ** 2, encoder.token_width
