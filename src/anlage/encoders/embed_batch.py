"""Many batches of tiles through an encoder, each at one shape, the device kept busy.

Shape suffixes: B tiles of a batch, 3 channels, H and W pixels, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from anlage.encoders.tile_encoder import TileEncoder

WHITE = 255


@dataclass(frozen=True, slots=True, eq=False)
class QueuedTiles:
    """What a device computes of a batch, on its way to the CPU. Made by ``queue_tiles`` alone."""

    outputs: tuple[Tensor, ...]
    copied: torch.cuda.Event | None

    def arrived(self) -> tuple[Tensor, ...]:
        """The outputs on the CPU; waits for them."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.outputs


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
    waiting: QueuedTiles | None = None
    for pixels_B3HW in batches:
        queued = queue_tiles(
            lambda pixels: (encoder.embed(pixels),),
            pixels_B3HW,
            device=encoder.device,
            batch_size=batch_size,
        )
        if waiting is not None:
            yield waiting.arrived()[0]
        waiting = queued
    if waiting is not None:
        yield waiting.arrived()[0]


def queue_tiles(
    compute: Callable[[Tensor], tuple[Tensor, ...]],
    pixels_B3HW: Tensor,
    *,
    device: torch.device,
    batch_size: int,
) -> QueuedTiles:
    """Begin to compute something of a batch; on CUDA without waiting for it.

    Args:
        compute: Given (batch_size, 3, H, W) uint8 tiles, padded with white ones: tensors with a
            row for each, on ``device``.
        pixels_B3HW: (B, 3, H, W) uint8 tiles on the CPU. They may be written over only when the
            outputs have arrived.
        device: Where ``compute`` works.
        batch_size: Tiles that it is given.

    Returns:
        What is computed, to be waited for; its tensors have B rows.

    Raises:
        ValueError: If the batch holds more than ``batch_size`` tiles, or none.
    """
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
    if device.type != "cuda":
        return QueuedTiles(tuple(each[:n_tiles] for each in compute(full_B3HW)), None)
    with torch.cuda.device(device):
        landed = tuple(_landing(each) for each in compute(full_B3HW.pin_memory()))
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record(torch.cuda.current_stream(device))
    return QueuedTiles(tuple(each[:n_tiles] for each in landed), copied)


def _landing(output: Tensor) -> Tensor:
    """A tensor in pinned memory, to which the output is being copied."""
    landing = torch.empty(output.shape, dtype=output.dtype, pin_memory=True)
    landing.copy_(output, non_blocking=True)
    return landing
