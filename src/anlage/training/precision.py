"""Which number format a step computes in."""

from __future__ import annotations

import torch

from anlage.encoders.precision import has_native_bf16


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Dtype for autocast, or None to compute in float32.

    ``auto`` takes bf16 on CUDA and on processors with native bf16 products; elsewhere bf16 is
    emulated and some twenty times slower than float32.

    Args:
        precision: ``auto``, ``bf16`` or ``fp32``.
        device: Where the step runs.

    Returns:
        ``torch.bfloat16`` or None.

    Raises:
        ValueError: If the precision is unknown.
    """
    if precision == "fp32":
        return None
    if precision == "bf16":
        return torch.bfloat16
    if precision != "auto":
        msg = f"autocast_dtype needs auto, bf16 or fp32; got {precision!r}. Correct the recipe."
        raise ValueError(msg)
    return torch.bfloat16 if has_native_bf16(device) else None
