"""Which number format an encoder computes in."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Resolved = Literal["fp32", "bf16", "fp16"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolved_precision(precision: Precision, device: torch.device) -> Resolved:
    """The format that a device computes in when asked for one.

    ``auto`` is bf16 on CUDA devices that have it and fp32 elsewhere: on the CPU, so that an
    embedding is the same number on every processor. bf16 is there for the asking, on processors
    that multiply it in hardware.

    Args:
        precision: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        device: Where the encoder runs.

    Raises:
        ValueError: If the device has no such arithmetic, or there is no such precision.
    """
    has_bf16, on_cuda = has_native_bf16(device), device.type == "cuda"
    if precision == "auto":
        return "bf16" if on_cuda and has_bf16 else "fp32"
    has = {"fp32": True, "bf16": has_bf16, "fp16": on_cuda}
    if not has.get(precision, False):
        can = ", ".join(name for name, is_there in has.items() if is_there)
        msg = (
            f"encoder: needs a precision that {device.type} has here (auto, {can}); "
            f"got {precision!r} on {device.type}. Leave it at auto."
        )
        raise ValueError(msg)
    return precision


def has_native_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
