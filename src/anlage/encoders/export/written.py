"""What the writer of a format tells, and the check that its files give the same embedding.

Shape suffixes: B tiles, 3 channels, H and W pixels, D embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anlage.encoders.encoder_sizes import EncoderSizes, encoder_sizes
from anlage.encoders.tile_encoder import TileEncoder
from anlage.errors import EncoderError
from anlage.models.layers.attention import SelfAttention
from anlage.models.layers.position_embedding import resize_positions

TOLERANCE = 1e-4  # of embeddings of size 1, in float32
N_TILES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What was written, for the card and the user.

    Attributes:
        library: The hub's name of the library that opens it.
        usage: Python that embeds one tile with it.
        notes: What differs from the encoder folder, or is left to the user; a sentence each.
        checked: What opened it and by how much its embedding differs, or why nothing did.
    """

    library: str
    usage: str
    notes: tuple[str, ...]
    checked: str


def sizes_of(encoder: TileEncoder) -> EncoderSizes:
    """The sizes of the encoder's transformer, read from its tensors."""
    return encoder_sizes(encoder.model.state_dict(), path="the encoder")


def positions_of_tiles(encoder: TileEncoder) -> Tensor:
    """Positions at the grid of the encoder's tiles, resampled as it does: (1, N, D)."""
    model = encoder.model
    edge = encoder.config.tile_px // model.patch_px
    return resize_positions(
        model.pos_embed.detach().cpu(),
        from_grid=model.grid,
        to_grid=(edge, edge),
        antialias=model.antialias,
    )


def norm_eps_of(encoder: TileEncoder) -> float:
    """Epsilon of the LayerNorms of blocks and of the last one."""
    return encoder.model.norm.eps


def n_heads_of(encoder: TileEncoder) -> int:
    """Attention heads of each block, which no tensor tells."""
    attention = encoder.model.blocks[0].attn
    assert isinstance(attention, SelfAttention), "ours has no other"
    return attention.n_heads


def refuse_what_cannot_be_said(library: str, reasons: list[str]) -> None:
    """Refuse an export for all its reasons at once.

    Raises:
        EncoderError: If there is a reason.
    """
    if reasons:
        msg = (
            f"cannot express this encoder: {'; '.join(reasons)}. "
            "Export it --to safetensors or --to onnx."
        )
        raise EncoderError(library, msg)


def trial_tiles(encoder: TileEncoder) -> Tensor:
    """Tiles to compare embeddings on: (3, 3, H, W) uint8, noise and smooth ramps."""
    edge = encoder.config.tile_px
    generator = torch.Generator().manual_seed(0)
    noise_3HW = torch.randint(0, 256, (3, edge, edge), generator=generator, dtype=torch.uint8)
    ramp_W = torch.linspace(0, 255, edge).to(torch.uint8)
    across_3HW = ramp_W.expand(3, edge, edge)
    return torch.stack([noise_3HW, across_3HW, across_3HW.transpose(1, 2)])


def normalised(encoder: TileEncoder, pixels_B3HW: Tensor) -> Tensor:
    """Pixels as the transformer takes them: (B, 3, H, W) float32 on the CPU."""
    mean, std = (
        torch.tensor(value).view(3, 1, 1) for value in (encoder.config.mean, encoder.config.std)
    )
    return (pixels_B3HW.float() / 255 - mean) / std


def pooled(encoder: TileEncoder, tokens_BSD: Tensor) -> Tensor:
    """The encoder's pooling of class, register and patch tokens: (B, D)."""
    cls_BD = tokens_BSD[:, 0]
    if encoder.config.pooling == "cls":
        return cls_BD
    patches_BND = tokens_BSD[:, 1 + encoder.model.n_registers :]
    return torch.cat([cls_BD, patches_BND.mean(dim=1)], dim=1)


def largest_difference(wanted_BD: Tensor, found_BD: Tensor, *, reader: str) -> str:
    """A sentence that says by how much two sets of embeddings differ.

    Args:
        wanted_BD: (B, D) of the encoder.
        found_BD: (B, D) of what was written.
        reader: What opened it, with its version.

    Raises:
        EncoderError: If they differ by more than 1e-4 of the largest value (or of 1, if that is
            larger), or in shape.
    """
    if wanted_BD.shape != found_BD.shape:
        msg = f"gives embeddings of shape {tuple(found_BD.shape)} for {tuple(wanted_BD.shape)}."
        raise EncoderError(reader, msg + " Nothing was written.")
    difference = float((wanted_BD.cpu() - found_BD.cpu()).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(wanted_BD.abs().max())):  # also for NaN
        msg = f"gives embeddings that differ by {difference:.2g} from the encoder's."
        raise EncoderError(reader, msg + " Nothing was written; please report it.")
    return f"Opened with {reader}: embeddings differ by {difference:.1g} at most."
