"""First weights: DINOv2's fixed deviation, or one that keeps signals their size at any width."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from anlage.models.layers.initialisation import initialise_linear
from anlage.models.projection_head import ProjectionHead
from anlage.models.vit import VisionTransformer


@pytest.mark.parametrize(("linear_std", "expected"), [(0.02, 0.02), (None, 400**-0.5)])
@pytest.mark.parametrize("layer", [nn.Linear(400, 300), nn.Conv2d(4, 300, 10)], ids=["lin", "conv"])
def test_deviation_and_zero_bias(
    layer: nn.Linear | nn.Conv2d, linear_std: float | None, expected: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    initialise_linear(layer, linear_std=linear_std, generator=generator)
    assert layer.weight.std().item() == pytest.approx(expected, rel=0.02)
    assert torch.count_nonzero(layer.bias) == 0


@pytest.mark.parametrize("width", [48, 768])
def test_fan_in_keeps_the_size_of_what_passes(width: int) -> None:
    layer = nn.Linear(width, width)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, width, generator=generator)
    initialise_linear(layer, linear_std=None, generator=generator)
    assert layer(x).std().item() == pytest.approx(1.0, rel=0.1)


def test_the_networks_pass_it_on() -> None:
    vit = VisionTransformer(image_px=16, patch_px=8, width=32, depth=1, n_heads=2, linear_std=None)
    head = ProjectionHead(width=32, n_prototypes=8, hidden=64, bottleneck=16, linear_std=None)
    linears = [m for net in (vit, head) for m in net.modules() if isinstance(m, nn.Linear)]
    assert len(linears) == 7
    for linear in linears:
        expected = linear.in_features**-0.5
        assert linear.weight.std().item() == pytest.approx(expected, rel=0.2)
