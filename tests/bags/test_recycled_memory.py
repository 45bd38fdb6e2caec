"""Memory that is used again, and never while anything still needs it."""

import gc

import pytest
import torch

from anlage.bags.recycled_memory import RecycledMemory


def test_what_nobody_holds_is_used_again():
    memory = RecycledMemory()
    tensor = memory.empty(100, 10)
    assert tensor.shape == (100, 10)
    assert tensor.dtype == torch.float32
    place = tensor.data_ptr()
    del tensor
    gc.collect()
    assert memory.empty(60, 10).data_ptr() == place


@pytest.mark.parametrize(
    "hold",
    [
        lambda tensor: tensor,
        lambda tensor: tensor[7:9],
        lambda tensor: tensor.numpy(),
        lambda tensor: tensor @ torch.ones(10, 2, requires_grad=True),  # whose gradient needs it
        lambda tensor: torch.nn.functional.linear(tensor, torch.ones(2, 10, requires_grad=True)),
        lambda tensor: memoryview(tensor.numpy()),
        lambda tensor: tensor.untyped_storage(),
    ],
)
def test_what_anything_needs_is_left_alone(hold):
    memory = RecycledMemory()
    tensor = memory.empty(100, 10)
    place, held = tensor.data_ptr(), hold(tensor)
    del tensor
    assert memory.empty(100, 10).data_ptr() != place
    del held
    gc.collect()
    assert memory.empty(100, 10).data_ptr() == place


def test_memory_far_too_large_is_let_go():
    memory = RecycledMemory()
    large = memory.empty(1000, 10)
    kept = memory.empty(1000, 10)
    del large
    small = memory.empty(10, 10)
    assert {array.size for array in memory._arrays} == {10_000, 100}
    del kept, small
    assert memory.empty(500, 10).untyped_storage().nbytes() < 4 * 10_001
