import pytest
import torch

from anlage.probes.linear.descent import AdamWDescent, SgdDescent, cosine_lr


def descend(descent, parameter, gradients, rates):
    for gradient, lr in zip(gradients, rates, strict=True):
        descent.step(gradient.clone(), lr=lr)
    return parameter


def by_torch(optimizer, parameter, gradients, rates):
    for gradient, lr in zip(gradients, rates, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


@pytest.fixture
def task():
    rng = torch.Generator().manual_seed(1)
    start = torch.randn(40, generator=rng)
    scale = 10.0 ** torch.randint(-6, 3, (200, 1), generator=rng)  # epsilon matters at the low end
    rates = [cosine_lr(step, peak_lr=0.01, n_steps=200) for step in range(200)]
    return start, torch.randn(200, 40, generator=rng) * scale, rates


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_adamw_is_torchs(task, weight_decay) -> None:
    start, gradients, rates = task
    ours, theirs = start.clone(), torch.nn.Parameter(start.clone())
    descent = AdamWDescent(ours, weight_decay=weight_decay)
    optimizer = torch.optim.AdamW([theirs], weight_decay=weight_decay, foreach=False, fused=False)
    expected = by_torch(optimizer, theirs, gradients, rates)
    torch.testing.assert_close(
        descend(descent, ours, gradients, rates), expected, atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize(("weight_decay", "momentum"), [(0, 0), (0.01, 0), (0.01, 0.9), (0, 0.9)])
def test_sgd_is_torchs(task, weight_decay, momentum) -> None:
    start, gradients, rates = task
    ours, theirs = start.clone(), torch.nn.Parameter(start.clone())
    descent = SgdDescent(ours, weight_decay=weight_decay, momentum=momentum)
    optimizer = torch.optim.SGD([theirs], lr=0.01, weight_decay=weight_decay, momentum=momentum)
    expected = by_torch(optimizer, theirs, gradients, rates)
    torch.testing.assert_close(
        descend(descent, ours, gradients, rates), expected, atol=1e-5, rtol=1e-5
    )


def test_the_cosine_is_torchs_schedule() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=37)
    for step in range(37):
        rate = optimizer.param_groups[0]["lr"]
        assert cosine_lr(step, peak_lr=0.02, n_steps=37) == pytest.approx(rate, abs=1e-12)
        optimizer.step()
        schedule.step()
    assert cosine_lr(37, peak_lr=0.02, n_steps=37) == pytest.approx(0, abs=1e-12)
