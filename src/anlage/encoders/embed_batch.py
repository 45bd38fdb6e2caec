"""Many batches of tiles through an encoder, each at one shape, the device kept busy.

Shape suffixes: B tiles of a batch, 3 channels, H and W pixels, D embedding width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from anlage.encoders.tile_encoder import TileEncoder

WHITE = 255


def embed_batches(
    encoder: TileEncoder, batches: Iterable[Tensor], *, batch_size: int
) -> Iterator[Tensor]:
    """Embed batches in order; a short one is padded to the full shape and cut again.

    Every forward pass thus has the same shape, so that an embedding does not depend on how many
    tiles happened to be left. On CUDA a batch is handed out only after the next one was queued.

    Args:
        encoder: The tile encoder.
        batches: (B, 3, H, W) uint8 tiles, B from 1 to ``batch_size``, on the CPU.
        batch_size: Tiles of a forward pass.

    Yields:
        (B, D) float32 embeddings on the CPU, one tensor a batch.

    Raises:
        ValueError: If a batch holds more than ``batch_size`` tiles, or none.
    """
    waiting: tuple[Tensor, torch.cuda.Event | None] | None = None
    for pixels_B3HW in batches:
        queued = _queue(encoder, pixels_B3HW, batch_size)
        if waiting is not None:
            yield _arrived(waiting)
        waiting = queued
    if waiting is not None:
        yield _arrived(waiting)


def _queue(
    encoder: TileEncoder, pixels_B3HW: Tensor, batch_size: int
) -> tuple[Tensor, torch.cuda.Event | None]:
    n_tiles = len(pixels_B3HW)
    if not 1 <= n_tiles <= batch_size:
        msg = (
            f"embed_batches: needs 1 to {batch_size} tiles a batch; got {n_tiles}. "
            "Raise batch_size, or cut the batches smaller."
        )
        raise ValueError(msg)
    full_B3HW = pixels_B3HW
    if n_tiles < batch_size:
        padding = (0, 0) * 3 + (0, batch_size - n_tiles)
        full_B3HW = functional.pad(pixels_B3HW, padding, value=WHITE)
    if encoder.device.type != "cuda":
        return encoder.embed(full_B3HW)[:n_tiles], None
    embedding_BD = encoder.embed(full_B3HW.pin_memory())
    landing_BD = torch.empty(embedding_BD.shape, dtype=embedding_BD.dtype, pin_memory=True)
    landing_BD.copy_(embedding_BD, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record(torch.cuda.current_stream(encoder.device))
    return landing_BD[:n_tiles], copied


def _arrived(queued: tuple[Tensor, torch.cuda.Event | None]) -> Tensor:
    embedding_BD, copied = queued
    if copied is not None:
        copied.synchronize()
    return embedding_BD
