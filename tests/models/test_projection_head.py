"""The projection head against its formula, and the names its optimiser relies on."""

import math

import pytest
import torch
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from anlage.models.projection_head import ProjectionHead, PrototypeLayer


def head(**options: int) -> ProjectionHead:
    torch.manual_seed(2)
    settings = {"width": 12, "n_prototypes": 40, "hidden": 24, "bottleneck": 8}
    return ProjectionHead(**(settings | options))


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_equals_the_layers_written_out() -> None:
    model, x = head(), numbers(5, 12)
    w = model.state_dict()
    hidden = functional.gelu(x @ w["mlp.0.weight"].T + w["mlp.0.bias"])
    hidden = functional.gelu(hidden @ w["mlp.2.weight"].T + w["mlp.2.bias"])
    bottleneck = hidden @ w["mlp.4.weight"].T + w["mlp.4.bias"]
    unit = bottleneck / bottleneck.norm(dim=1, keepdim=True)
    direction = w["last_layer.weight_v"] / w["last_layer.weight_v"].norm(dim=1, keepdim=True)
    torch.testing.assert_close(model.bottleneck_of(x), unit)
    torch.testing.assert_close(model(x), unit @ direction.T)
    torch.testing.assert_close(model.last_layer(unit), model(x))


def test_prototypes_and_their_gradients_equal_torchs_weight_norm() -> None:
    ours, x = PrototypeLayer(width=8, n_prototypes=5), numbers(6, 8)
    ours.initialise()
    torch.nn.init.uniform_(ours.weight_g, 0.5, 2.0)
    theirs = weight_norm(torch.nn.Linear(8, 5, bias=False))
    pairs = [
        (ours.weight_g, theirs.parametrizations.weight.original0),
        (ours.weight_v, theirs.parametrizations.weight.original1),
    ]
    for mine, yours in pairs:
        yours.data.copy_(mine.data)
    torch.testing.assert_close(ours(x), theirs(x))
    ours(x).square().sum().backward()
    theirs(x).square().sum().backward()
    for mine, yours in pairs:
        torch.testing.assert_close(mine.grad, yours.grad)


def test_logits_are_cosines_at_the_start() -> None:
    model = head()
    logits = model(100 * numbers(50, 12))
    assert logits.abs().max() <= 1 + 1e-6
    own = model.last_layer(functional.normalize(model.last_layer.weight_v, dim=1))
    torch.testing.assert_close(own.diagonal(), torch.ones(40))


def test_names_in_the_state_dict_are_stable() -> None:
    names = [f"mlp.{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")]
    wanted = {*names, "last_layer.weight_g", "last_layer.weight_v"}
    assert set(head().state_dict()) == wanted
    assert {n for n, _ in head().named_parameters()} == wanted  # all are trained
    assert set(head(n_layers=1).state_dict()) - wanted == set()


def test_weights_start_as_in_dinov2() -> None:
    model = head(width=200, hidden=300, bottleneck=100, n_prototypes=500)
    for layer in (model.mlp[0], model.mlp[2], model.mlp[4]):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.03)
        assert layer.bias.abs().max() == 0
    assert model.last_layer.weight_g.unique().tolist() == [1.0]
    bound = 1 / math.sqrt(100)
    assert model.last_layer.weight_v.abs().max() <= bound
    assert model.last_layer.weight_v.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)


def test_initialise_repeats_with_a_generator() -> None:
    models = [head(), head()]
    for model in models:
        model.initialise(torch.Generator().manual_seed(9))
    for left, right in zip(*(m.state_dict().values() for m in models), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)


def test_no_rows_are_no_logits_but_keep_the_graph() -> None:
    model = head()
    logits = model(torch.zeros(0, 12))
    logits.sum().backward()
    assert logits.shape == (0, 40)
    assert model.mlp[0].weight.grad.abs().max() == 0


def test_the_bottleneck_is_of_unit_length_in_float32_under_autocast() -> None:
    model = head()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        unit = model.bottleneck_of(numbers(5, 12))
    assert unit.dtype == torch.float32
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(5))


@pytest.mark.parametrize(
    "options", [{"n_layers": 0}, {"n_prototypes": 0}, {"bottleneck": 0}, {"width": -1}]
)
def test_refuses_sizes_below_one(options: dict) -> None:
    with pytest.raises(ValueError, match="needs n_layers and all sizes to be 1 or more"):
        head(**options)
