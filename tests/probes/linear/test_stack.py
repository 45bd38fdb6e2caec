import pytest
import torch
from torch import nn
from torch.nn import functional

from anlage.probes.linear.stack import HeadStack, first_weights, shuffled_epochs


@pytest.mark.parametrize("n_outputs", [1, 3])
def test_gradients_of_all_heads_are_autograds(generator, n_outputs) -> None:
    train = torch.from_numpy(generator.normal(size=(30, 5))).float()
    code = torch.from_numpy(generator.integers(0, max(2, n_outputs), 30))
    stack = HeadStack(train, n_outputs=n_outputs, seeds=[3, 1, 4])
    for n_rows in (8, 7, 11):  # a batch may be shorter or longer than the one before
        rows = torch.from_numpy(generator.integers(0, 30, size=(3, n_rows)))
        stack.set_gradient(rows, code[rows])
        expected = []
        for head in range(3):
            weight = stack.weight_RCD[head].clone().requires_grad_()
            bias = stack.bias_RC[head].clone().requires_grad_()
            logit = train[rows[head]] @ weight.T + bias
            target = code[rows[head]]
            if n_outputs == 1:
                loss = functional.binary_cross_entropy_with_logits(logit[:, 0], target.float())
            else:
                loss = functional.cross_entropy(logit, target)
            expected.append(torch.autograd.grad(loss, (weight, bias)))
        flat = torch.cat([torch.stack(parts).flatten() for parts in zip(*expected, strict=True)])
        torch.testing.assert_close(stack.gradient_P, flat, atol=1e-7, rtol=1e-5)


def test_heads_start_as_torchs_layer_does_and_leave_its_generator_alone() -> None:
    torch.manual_seed(11)
    layer = nn.Linear(37, 5)
    state = torch.get_rng_state()
    weight, bias = first_weights(5, 37, seed=11)
    torch.testing.assert_close(weight, layer.weight.detach(), atol=1e-7, rtol=0)
    torch.testing.assert_close(bias, layer.bias.detach(), atol=1e-7, rtol=0)
    assert torch.equal(state, torch.get_rng_state())


def test_an_epoch_has_every_row_once_in_the_order_of_its_seed() -> None:
    epochs = shuffled_epochs(50, seeds=[7, 8], device=torch.device("cpu"))
    first, second = next(epochs), next(epochs)
    assert first.shape == (2, 50)
    for order in (*first, *second):
        assert torch.equal(order.sort().values, torch.arange(50))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], second[0])
    expected = torch.randperm(50, generator=torch.Generator().manual_seed(8))
    assert torch.equal(first[1], expected)


def test_logits_come_in_blocks_of_all_rows(generator) -> None:
    train = torch.from_numpy(generator.normal(size=(9000, 3))).float()
    stack = HeadStack(train, n_outputs=2, seeds=[0, 1])
    blocks = list(stack.logits(train))
    assert [block.shape[2] for block in blocks] == [8192, 808]
    expected = torch.einsum("rcd,vd->rcv", stack.weight_RCD, train) + stack.bias_RC[..., None]
    torch.testing.assert_close(torch.cat(blocks, dim=2), expected)
