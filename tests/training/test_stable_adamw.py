"""StableAdamW against two libraries, a slow numpy version, torch's AdamW and its closed forms."""

from __future__ import annotations

import copy
import io
import math
import re
from collections.abc import Callable
from functools import partial

import numpy as np
import optimi
import pytest
import pytorch_optimizer
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anlage.training.stable_adamw import StableAdamW
from reference.slow_stable_adamw import slow_stable_adamw

SHAPES = ((64, 64), (7,), (3, 5, 2))
SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-6, "weight_decay": 0.1}
Build = Callable[..., torch.optim.Optimizer]

REFERENCES: dict[str, Build] = {
    "torch-optimi": partial(optimi.StableAdamW, triton=False, foreach=False),
    "pytorch-optimizer, foreach": partial(pytorch_optimizer.StableAdamW, foreach=True),
    "pytorch-optimizer, loop": partial(pytorch_optimizer.StableAdamW, foreach=False),
}


def make_weights(dtype: torch.dtype, shapes=SHAPES) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
        for shape in shapes
    ]


def spiky_gradients(steps: int, shapes=SHAPES, *, spike_share: float = 0.1) -> list[list]:
    """Gradients of size 1e-3, whole tensors or single elements of which jump by up to 1e4."""
    generator = np.random.default_rng(2)
    series = []
    for _ in range(steps):
        gradients = [1e-3 * generator.standard_normal(shape) for shape in shapes]
        for gradient in gradients:
            if generator.random() < spike_share:
                np.multiply(gradient, 10 ** generator.uniform(1, 4), out=gradient)
            elif generator.random() < spike_share:
                gradient.flat[generator.integers(gradient.size)] *= 1e4
        series.append(gradients)
    return series


def take_steps(optimizer: torch.optim.Optimizer, weights: list, series: list) -> None:
    for gradients in series:
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = torch.as_tensor(gradient).to(weight.dtype)
        optimizer.step()


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize(
    ("dtype", "weight_decay", "atol"),
    [
        (torch.float64, 0.1, 1e-14),
        (torch.float32, 0.0, 5e-7),
        # Both libraries round 1 - rate * weight_decay to float32, which drifts by 3.6e-6 here.
        (torch.float32, 0.1, 5e-6),
    ],
)
def test_fifty_spiky_steps_as_in_the_libraries(
    reference: str, dtype: torch.dtype, weight_decay: float, atol: float
) -> None:
    series = spiky_gradients(50)
    used = SETTINGS | {"weight_decay": weight_decay}
    ours, theirs = make_weights(dtype), make_weights(dtype)
    take_steps(StableAdamW(ours, **used), ours, series)
    take_steps(REFERENCES[reference](theirs, **used), theirs, series)
    for a, b, start in zip(ours, theirs, make_weights(dtype), strict=True):
        assert (a - start).abs().max() > 0.05
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


def test_float32_stays_by_float64() -> None:
    series = [[torch.as_tensor(g).float() for g in gradients] for gradients in spiky_gradients(50)]
    single = make_weights(torch.float32)
    double = [torch.nn.Parameter(weight.detach().double()) for weight in single]
    take_steps(StableAdamW(single, **SETTINGS), single, series)
    take_steps(StableAdamW(double, **SETTINGS), double, series)
    for a, b in zip(single, double, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=2e-6)


def test_every_step_as_in_the_slow_version() -> None:
    shape = (4, 3)
    series = [gradients[0] for gradients in spiky_gradients(30, (shape,), spike_share=0.3)]
    series[7] = np.zeros(shape)
    (weight,) = make_weights(torch.float64, (shape,))
    expected = slow_stable_adamw(weight.detach().numpy(), series, **SETTINGS)
    optimizer = StableAdamW([weight], **SETTINGS)
    for gradient, after in zip(series, expected, strict=True):
        take_steps(optimizer, [weight], [[gradient]])
        np.testing.assert_allclose(weight.detach().numpy(), after, rtol=0, atol=1e-14)


def test_a_parameter_without_gradient_is_skipped_and_debiased_from_its_first_one() -> None:
    late, always = make_weights(torch.float64, ((5,), (5,)))
    start = late.detach().clone()
    series = [gradients[0] for gradients in spiky_gradients(12, ((5,),))]
    optimizer = StableAdamW([late, always], **SETTINGS)
    for number, gradient in enumerate(series):
        always.grad = torch.as_tensor(gradient)
        late.grad = None if number < 4 or number == 8 else torch.as_tensor(gradient)
        optimizer.step()
        if number < 4:
            assert torch.equal(late, start)
            assert late not in optimizer.state
    own = [None if number < 4 or number == 8 else g for number, g in enumerate(series)]
    expected = slow_stable_adamw(start.numpy(), own, **SETTINGS)
    np.testing.assert_allclose(late.detach().numpy(), expected[-1], rtol=0, atol=1e-14)
    assert int(optimizer.state[late]["step"]) == 7


def test_is_adamw_where_no_rms_exceeds_one() -> None:
    # Shrinking gradients: each is below the root mean square of those before, so RMS < 1.
    series = [[0.97**step * g for g in spiky_gradients(1)[0]] for step in range(40)]
    ours, theirs = make_weights(torch.float64), make_weights(torch.float64)
    take_steps(StableAdamW(ours, **SETTINGS), ours, series)
    take_steps(torch.optim.AdamW(theirs, **SETTINGS), theirs, series)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-14)


def test_is_not_adamw_where_one_does() -> None:
    series = spiky_gradients(40)
    ours, theirs = make_weights(torch.float64), make_weights(torch.float64)
    take_steps(StableAdamW(ours, **SETTINGS), ours, series)
    take_steps(torch.optim.AdamW(theirs, **SETTINGS), theirs, series)
    assert (ours[0] - theirs[0]).abs().max() > 1e-3


def test_debiased_betas_are_bias_correction() -> None:
    gradient = torch.tensor([3.0], dtype=torch.float64)
    (weight,) = make_weights(torch.float64, ((1,),))
    optimizer = StableAdamW([weight], **SETTINGS)
    take_steps(optimizer, [weight], [[gradient]] * 9)
    # The corrected mean of a constant is the constant, at every step.
    state = optimizer.state[weight]
    torch.testing.assert_close(state["first_moment"], gradient, rtol=1e-14, atol=0)
    torch.testing.assert_close(state["second_moment"], gradient.square(), rtol=1e-14, atol=0)


@pytest.mark.parametrize("beta_2", [0.95, 0.999])
def test_a_whole_tensor_that_spikes_moves_by_its_closed_form(beta_2: float) -> None:
    lr, betas, steps = 1e-3, (0.9, beta_2), 101
    quiet, spike = torch.full((20,), 1e-3), torch.full((20,), 1e4)
    moved = {}
    for kind in (StableAdamW, torch.optim.AdamW):
        weight = torch.nn.Parameter(torch.zeros(20, dtype=torch.float64))
        optimizer = kind([weight], lr=lr, betas=betas, eps=1e-6, weight_decay=0.0)
        take_steps(optimizer, [weight], [[quiet]] * (steps - 1))
        before = weight.detach().clone()
        take_steps(optimizer, [weight], [[spike]])
        moved[kind] = (before - weight).max().item() / lr
    fresh_1, fresh_2 = ((1 - beta) / (1 - beta**steps) for beta in betas)
    assert moved[StableAdamW] == pytest.approx(fresh_1, rel=1e-5)
    assert moved[torch.optim.AdamW] == pytest.approx(fresh_1 / math.sqrt(fresh_2), rel=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    spikes=st.lists(
        st.tuples(st.integers(0, 39), st.integers(0, 5), st.floats(-1e4, 1e4)), max_size=8
    )
)
def test_no_spike_moves_a_weight_by_more_than_about_lr(spikes: list) -> None:
    lr, (beta_1, beta_2) = 0.01, (0.9, 0.95)
    # Cauchy-Schwarz on the two averages; the debiased ones of the first steps are below it.
    most = (1 - beta_1) / math.sqrt((1 - beta_2) * (1 - beta_1**2 / beta_2))
    assert most == pytest.approx(1.165, abs=1e-3)
    weight = torch.nn.Parameter(torch.zeros(6, dtype=torch.float64))
    optimizer = StableAdamW([weight], lr=lr, betas=(beta_1, beta_2), eps=1e-6, weight_decay=0.0)
    series = 1e-2 * np.random.default_rng(0).standard_normal((40, 6))
    for step, index, size in spikes:
        series[step, index] = size
    for gradient in series:
        before = weight.detach().clone()
        take_steps(optimizer, [weight], [[gradient]])
        assert (weight - before).abs().max() <= lr * most * (1 + 1e-9)


def test_weight_decay_takes_its_share_of_the_divided_rate() -> None:
    weight = torch.nn.Parameter(torch.full((2, 50), 8.0, dtype=torch.float64))
    optimizer = StableAdamW([weight], lr=0.5, betas=(0.0, 0.95), weight_decay=0.1)
    take_steps(optimizer, [weight], [[torch.ones(2, 50)]] * 500)
    before = weight.detach().clone()
    take_steps(optimizer, [weight], [[torch.full((2, 50), 1e6)]])
    rate = 0.5 * math.sqrt(0.05)
    expected = before - rate * 0.1 * before - rate / math.sqrt(0.05)
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-6, atol=0)


def test_groups_keep_their_own_rates_and_foreign_keys() -> None:
    frozen, moving, plain = make_weights(torch.float32)
    before = frozen.detach().clone()
    optimizer = StableAdamW(
        [
            {"params": [frozen], "lr_factor": 0.5, "decays": True, "prototypes": True},
            {"params": [moving], "lr_factor": 0.5, "decays": True, "prototypes": False},
            {"params": [plain], "lr_factor": 1.0, "decays": False, "prototypes": False},
        ],
        lr=1.0,
    )
    for group in optimizer.param_groups:
        group["lr"] = 0.0 if group["prototypes"] else SETTINGS["lr"]
        group["weight_decay"] = SETTINGS["weight_decay"] if group["decays"] else 0.0
    series = spiky_gradients(5)
    take_steps(optimizer, [frozen, moving, plain], series)
    assert torch.equal(frozen, before)
    assert (optimizer.state[frozen]["first_moment"] != 0).all()
    for index, decay in ((1, SETTINGS["weight_decay"]), (2, 0.0)):
        alone = make_weights(torch.float32)[index]
        one = StableAdamW([alone], **(SETTINGS | {"weight_decay": decay}))
        take_steps(one, [alone], [[gradients[index]] for gradients in series])
        assert torch.equal(alone, (frozen, moving, plain)[index])
    assert optimizer.state_dict()["param_groups"][0]["prototypes"] is True


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_run_goes_on_from_its_saved_state_bit_for_bit(dtype: torch.dtype) -> None:
    series = spiky_gradients(20)
    whole = make_weights(dtype)
    take_steps(StableAdamW(whole, **SETTINGS), whole, series)

    first = make_weights(dtype)
    optimizer = StableAdamW(first, **SETTINGS)
    take_steps(optimizer, first, series[:11])
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    second = copy.deepcopy(first)
    resumed = StableAdamW(second, lr=1.0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for a, b in zip(first, second, strict=True):
        for key, value in optimizer.state[a].items():
            assert resumed.state[b][key].dtype is value.dtype
            assert torch.equal(resumed.state[b][key], value)
    take_steps(resumed, second, series[11:])
    for a, b in zip(whole, second, strict=True):
        assert torch.equal(a, b)


def test_the_state_of_adamw_is_refused() -> None:
    weights = make_weights(torch.float32)
    adamw = torch.optim.AdamW(weights)
    take_steps(adamw, weights, spiky_gradients(1))
    with pytest.raises(
        ValueError, match=r"needs a state of first_moment.*got exp_avg.*StableAdamW"
    ):
        StableAdamW(weights, lr=1.0).load_state_dict(adamw.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_weights_have_float32_moments(dtype: torch.dtype) -> None:
    low, high = make_weights(dtype), [w.float() for w in make_weights(dtype)]
    high = [torch.nn.Parameter(w.detach()) for w in high]
    series = [[torch.as_tensor(g).to(dtype) for g in gradients] for gradients in spiky_gradients(3)]
    ours, wide = StableAdamW(low, **SETTINGS), StableAdamW(high, **SETTINGS)
    for gradients in series:
        take_steps(ours, low, [gradients])
        take_steps(wide, high, [gradients])
        for a, b in zip(low, high, strict=True):
            assert torch.equal(a, b.to(dtype))  # the same step, rounded once
            for moment in ("first_moment", "second_moment"):
                assert ours.state[a][moment].dtype is torch.float32
                assert torch.equal(ours.state[a][moment], wide.state[b][moment])
            with torch.no_grad():
                b.copy_(a)


def test_dtypes_mix_in_a_group() -> None:
    mixed = [make_weights(dtype)[0] for dtype in (torch.float32, torch.float64, torch.bfloat16)]
    gradient = spiky_gradients(1)[0][0]
    take_steps(StableAdamW(mixed, **SETTINGS), mixed, [[gradient] * 3])
    for weight in mixed:
        alone = make_weights(weight.dtype)[0]
        take_steps(StableAdamW([alone], **SETTINGS), [alone], [[gradient]])
        assert torch.equal(weight, alone)


def test_nothing_is_read_back_from_the_device() -> None:
    # A meta tensor has no values: reading one, as .item() or an if would, raises.
    weights = [torch.nn.Parameter(torch.empty(shape, device="meta")) for shape in SHAPES]
    optimizer = StableAdamW(weights, **SETTINGS)
    for _ in range(2):
        for weight in weights:
            weight.grad = torch.empty_like(weight)
        optimizer.step()
    assert optimizer.state[weights[0]]["first_moment"].device.type == "meta"


@pytest.mark.gpu
def test_a_step_on_a_gpu_waits_for_nothing_and_is_that_of_the_cpu() -> None:
    series = spiky_gradients(20)
    host = make_weights(torch.float32)
    device = [torch.nn.Parameter(weight.detach().cuda()) for weight in host]
    take_steps(StableAdamW(host, **SETTINGS), host, series)
    optimizer = StableAdamW(device, **SETTINGS)
    for gradients in series:
        for weight, gradient in zip(device, gradients, strict=True):
            weight.grad = torch.as_tensor(gradient).float().cuda()
        torch.cuda.set_sync_debug_mode("error")
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for a, b in zip(device, host, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=0, atol=1e-6)


def test_an_unsound_step_changes_nothing_even_where_gradients_are_nan() -> None:
    series = spiky_gradients(4)
    weights, others = make_weights(torch.float32), make_weights(torch.float32)
    optimizer, other = StableAdamW(weights, **SETTINGS), StableAdamW(others, **SETTINGS)
    optimizer.found_inf = torch.zeros(())
    take_steps(optimizer, weights, series[:3])
    take_steps(other, others, series[:3])
    assert all(torch.equal(a, b) for a, b in zip(weights, others, strict=True))

    optimizer.found_inf = torch.ones(())
    take_steps(optimizer, weights, [[np.full_like(g, np.nan) for g in series[3]]])
    for mine, theirs in zip(weights, others, strict=True):
        assert torch.equal(mine, theirs)
        for moment in ("first_moment", "second_moment"):
            assert torch.equal(optimizer.state[mine][moment], other.state[theirs][moment])


def test_descends_a_quadratic_in_spite_of_a_spike() -> None:
    weight = torch.nn.Parameter(torch.tensor([3.0, -2.0]))
    optimizer = StableAdamW([weight], lr=0.03)

    def loss_of(scale: float) -> float:
        optimizer.zero_grad()
        loss = weight.square().sum()
        (scale * loss).backward()
        return loss.item()

    losses = [optimizer.step(partial(loss_of, 1e4 if step == 20 else 1.0)) for step in range(700)]
    assert losses[0] == 13.0
    assert losses[-1] < 0.05


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", -1.0), ("lr", math.nan), ("betas", (0.9, 1.0)), ("eps", 0.0), ("weight_decay", -0.1)],
)
def test_a_setting_out_of_range_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=re.escape(f"got {value}. Correct {name}.")):
        StableAdamW(make_weights(torch.float32), **(SETTINGS | {name: value}))
