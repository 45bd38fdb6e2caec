import numpy as np
import pytest
import torch

from anlage.models.grid_positions import grid_positions


def table_row(x: int, y: int, width: int) -> np.ndarray:
    """Positions as written down in MAE: sines then cosines of y, then of x."""
    frequency = 1 / 10000 ** (np.arange(width // 4) / (width / 4))
    halves = [np.concatenate([np.sin(c * frequency), np.cos(c * frequency)]) for c in (y, x)]
    return np.concatenate(halves)


def test_each_row_is_that_of_its_cell():
    cells = torch.tensor([[0, 0], [3, 999], [999, 3], [3, 999], [512, 0]])
    found = grid_positions(cells, width=48)
    assert found.dtype == torch.float32
    wanted = np.stack([table_row(x, y, 48) for x, y in cells.tolist()])
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-7)


def test_cells_beyond_a_thousand_have_positions_of_their_own():
    far = grid_positions(torch.tensor([[0, 1000], [1, 0], [5000, 7000]]), width=48)
    assert (far[0] - far[1]).abs().max() > 0.5  # one row of GigaPath's table
    np.testing.assert_allclose(far[2].numpy(), table_row(5000, 7000, 48), atol=1e-7)


def test_no_cells_no_positions():
    assert grid_positions(torch.empty(0, 2, dtype=torch.int64), width=8).shape == (0, 8)


def test_refusals():
    with pytest.raises(ValueError, match="multiple of 4; got 6"):
        grid_positions(torch.zeros(3, 2, dtype=torch.int64), width=6)
    with pytest.raises(ValueError, match=r"\(T, 2\) whole cells .*float32"):
        grid_positions(torch.zeros(3, 2), width=8)
    with pytest.raises(ValueError, match=r"got \(3, 3\)"):
        grid_positions(torch.zeros(3, 3, dtype=torch.int64), width=8)
