"""Tiles on their way to a GPU, beside what it computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from anlage.tiles.stream import TileBatch


def on_device(batches: Iterable[TileBatch], device: torch.device) -> Iterator[TileBatch]:
    """Batches with their pixels on the device.

    On CUDA they are copied on a stream of their own, from pinned memory, while the step before is
    still computed; what is launched afterwards waits for them on the device, the host does not.
    Elsewhere they stay as they are.

    Args:
        batches: uint8 tiles on the CPU.
        device: Where they are needed.
    """
    if device.type != "cuda":
        yield from batches
        return
    beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    for batch in batches:
        with torch.cuda.stream(beside):
            pixels = batch.pixels.to(device, non_blocking=True)
        here = torch.cuda.current_stream(device)
        here.wait_stream(beside)
        pixels.record_stream(here)
        yield replace(batch, pixels=pixels)
