import math

import pytest
import torch

from anlage.probes.linear.objective import Penalty, SoftmaxObjective


@pytest.mark.parametrize("margin", [-700.0, -25.0, 0.0, 19.0, 21.0, 30.0, 39.0, 41.0, 700.0])
def test_the_loss_of_a_row_is_exact_to_float64s_rounding(margin) -> None:
    """However well or badly the row is classified."""
    objective = SoftmaxObjective(
        train_MD=torch.ones(1, 1, dtype=torch.float64),
        code_M=torch.tensor([0]),
        weight_M=torch.ones(1, dtype=torch.float64),
        n_classes=2,
        penalty=Penalty(),
    )
    value, gradient_CE = objective(torch.tensor([[0, 0], [0, margin]], dtype=torch.float64))
    expected = max(margin, 0) + math.log1p(math.exp(-abs(margin)))
    assert value == pytest.approx(expected, rel=1e-15)
    share = 1 / (1 + math.exp(-margin))
    assert gradient_CE[1].tolist() == pytest.approx([share, share], rel=1e-14)
