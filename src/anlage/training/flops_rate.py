"""How much of a device's arithmetic a run makes use of: FLOP/s counted over FLOP/s there are."""

from __future__ import annotations

import time
from collections.abc import Callable

PEAK_TFLOPS: dict[str, float] = {
    # Longest names first where one begins with another. Dense (half of "with sparsity"), bf16.
    "GB200": 2500.0,  # NVIDIA GB200 NVL72 datasheet, per GPU
    "B200": 2250.0,  # NVIDIA HGX B200 datasheet
    "GH200": 989.4,  # NVIDIA GH200 datasheet
    "H200 NVL": 835.5,  # NVIDIA H200 datasheet
    "H200": 989.4,  # NVIDIA H200 datasheet, SXM
    "H100 PCIe": 756.5,  # NVIDIA H100 datasheet
    "H100 NVL": 835.5,  # NVIDIA H100 datasheet
    "H100": 989.4,  # NVIDIA H100 datasheet, SXM ("NVIDIA H100 80GB HBM3")
    "H800": 989.4,  # as the H100 SXM
    "H20": 148.0,  # NVIDIA H20 datasheet
    "A100": 312.0,  # NVIDIA A100 datasheet, all forms
    "A800": 312.0,  # as the A100
    "A40": 149.7,  # NVIDIA A40 datasheet
    "A30": 165.0,  # NVIDIA A30 datasheet
    "A10G": 70.0,  # NVIDIA A10G datasheet
    "A10": 125.0,  # NVIDIA A10 datasheet
    "L40S": 362.05,  # NVIDIA L40S datasheet
    "L40": 181.05,  # NVIDIA L40 datasheet
    "L4": 121.0,  # NVIDIA L4 datasheet
    "RTX A6000": 154.8,  # NVIDIA RTX A6000 datasheet
    "RTX 4090": 165.2,  # NVIDIA Ada whitepaper, float32 accumulation
    "RTX 3090": 71.0,  # NVIDIA GA102 whitepaper, float32 accumulation
    "V100-SXM2": 125.0,  # NVIDIA V100 datasheet; fp16, having no bf16
    "V100-PCIE": 112.0,  # NVIDIA V100 datasheet; fp16, having no bf16
    "MI300X": 1307.4,  # AMD Instinct MI300X datasheet
}
"""Peak of matrix products in 16 bit, TFLOP/s, by a part of the device's name in torch."""


def peak_tflops(device_name: str) -> float | None:
    """Published peak of a device, dense bf16 products, TFLOP/s.

    Args:
        device_name: As ``torch.cuda.get_device_name`` gives it.

    Returns:
        The peak; None where none is known, so on every CPU.
    """
    words = f" {device_name} ".replace("-", " ").lower()
    names = sorted(PEAK_TFLOPS, key=len, reverse=True)
    found = (name for name in names if f" {name.replace('-', ' ').lower()} " in words)
    return next((PEAK_TFLOPS[name] for name in found), None)


class RateMeter:
    """FLOP/s between two steps, and the model FLOPs utilisation (MFU).

        MFU = FLOPs of a step / seconds it took / (peak * 1e12)

    FLOPs are those the method needs, counted from shapes, whatever else the device computes
    (activations computed twice, padding); so MFU counts waiting and waste against the run.

    Args:
        flops_per_step: Counted FLOPs of one step on this device.
        peak_tflops: Peak of the device, TFLOP/s, such as ``peak_tflops(name)``; None if not known.
        clock: Seconds; call it after the device is done (reading a loss waits for it).

    Raises:
        ValueError: If there are no FLOPs, or the peak is not > 0.

    Source: Chowdhery et al. 2022, PaLM, arXiv:2204.02311, appendix B.
    """

    def __init__(
        self,
        *,
        flops_per_step: float,
        peak_tflops: float | None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if not (flops_per_step > 0 and (peak_tflops is None or peak_tflops > 0)):
            msg = (
                "RateMeter: needs flops_per_step > 0 and peak_tflops > 0 or None; got "
                f"{flops_per_step} and {peak_tflops}. Leave out a peak that is not known."
            )
            raise ValueError(msg)
        self._flops, self._peak, self._clock = flops_per_step, peak_tflops, clock
        self._began = clock()

    def of_step(self, *, extra_flops: float = 0.0) -> dict[str, float]:
        """Metrics of the step that ends now: ``tflops`` a second; ``mfu`` if a peak is known.

        Args:
            extra_flops: FLOPs of this step beside those of every one.
        """
        ended = self._clock()
        tflops = (self._flops + extra_flops) / max(ended - self._began, 1e-9) / 1e12
        self._began = ended
        return {"tflops": tflops} | ({} if self._peak is None else {"mfu": tflops / self._peak})

    def begin_step(self) -> None:
        """Start the clock anew, so that a look or a checkpoint counts for no step."""
        self._began = self._clock()
