"""FLOP/s and MFU by a clock that the test moves, and peaks by the names torch gives."""

import pytest
import torch

from anlage.training.flops_rate import PEAK_TFLOPS, RateMeter, peak_tflops


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A100 80GB PCIe", 312.0),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40", 181.05),
        ("NVIDIA L40S", 362.05),
        ("Tesla V100-SXM2-32GB", 125.0),
        ("Tesla V100-PCIE-16GB", 112.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA RTX A6000", 154.8),
        ("AMD Instinct MI300X", 1307.4),
        ("NVIDIA H2000", None),
        ("NVIDIA GeForce GTX 1080", None),
        ("cpu", None),
        ("", None),
    ],
)
def test_peaks_by_name(name, peak) -> None:
    assert peak_tflops(name) == peak


@pytest.mark.parametrize("name", PEAK_TFLOPS)
def test_every_name_finds_itself(name) -> None:
    assert peak_tflops(f"NVIDIA {name}") == PEAK_TFLOPS[name]


def test_mfu_is_flops_over_seconds_over_peak() -> None:
    clock = Clock()
    meter = RateMeter(flops_per_step=3e12, peak_tflops=10.0, clock=clock)
    clock.now_s = 2.0
    assert meter.of_step() == pytest.approx({"tflops": 1.5, "mfu": 0.15})
    clock.now_s = 3.0
    assert meter.of_step() == pytest.approx({"tflops": 3.0, "mfu": 0.3})


def test_a_look_between_two_steps_counts_for_none() -> None:
    clock = Clock()
    meter = RateMeter(flops_per_step=1e12, peak_tflops=None, clock=clock)
    clock.now_s = 60.0
    meter.begin_step()
    clock.now_s = 64.0
    assert meter.of_step() == {"tflops": 0.25}


@pytest.mark.parametrize(("flops", "peak"), [(0.0, 1.0), (1.0, 0.0), (float("nan"), None)])
def test_refuses_what_gives_no_rate(flops, peak) -> None:
    with pytest.raises(ValueError, match="RateMeter: needs flops_per_step > 0"):
        RateMeter(flops_per_step=flops, peak_tflops=peak)


@pytest.mark.gpu
def test_this_gpu_has_a_known_peak() -> None:
    assert peak_tflops(torch.cuda.get_device_name()) is not None
