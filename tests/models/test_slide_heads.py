"""Heads: grades that start alike, thresholds that fall, branches that score themselves."""

import pytest
import torch

from anlage.models.slide_heads import BranchHead, OrderedHead, slide_head
from anlage.objectives.slide_ordinal import grade_probabilities, ordinal_loss


@pytest.mark.parametrize("n_outputs", [1, 2, 5])
def test_all_grades_start_alike_for_a_score_of_zero(n_outputs: int) -> None:
    logits = OrderedHead(width=3, n_outputs=n_outputs)(torch.zeros(1, 3))
    expected = torch.full((1, n_outputs + 1), 1 / (n_outputs + 1))
    torch.testing.assert_close(grade_probabilities(logits), expected)


def test_thresholds_fall_wherever_training_takes_them() -> None:
    torch.manual_seed(0)
    head = OrderedHead(width=3, n_outputs=4)
    with torch.no_grad():
        head.gap.copy_(torch.tensor([-50.0, 0, 30]))
        head.first.fill_(-7)
    logits = head(torch.randn(20, 3) * 10)
    assert (logits.diff(dim=1) < 0).all()
    loss = ordinal_loss(logits, torch.arange(20) % 5, link="cumulative")
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(head.gap.grad).all()


def test_thresholds_fall_under_autocast() -> None:
    torch.manual_seed(0)
    head = OrderedHead(width=8, n_outputs=5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(torch.randn(50, 8) * 10)
    assert (logits.diff(dim=1) < 0).all()


def test_grades_are_learnt_from_one_direction() -> None:
    torch.manual_seed(1)
    head = slide_head(2, 3, kind="ordered", hidden=(), is_branched=False)
    rows = torch.linspace(-2, 2, 40)[:, None].repeat(1, 2)
    target = torch.bucketize(rows[:, 0].contiguous(), torch.tensor([-1.0, 0, 1]))
    optimizer = torch.optim.Adam(head.parameters(), lr=0.2)
    for _ in range(150):
        loss = ordinal_loss(head(rows), target, link="cumulative").mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.equal(grade_probabilities(head(rows)).argmax(dim=1), target)


def test_a_branch_scores_its_own_vector() -> None:
    torch.manual_seed(2)
    head = BranchHead(width=4, n_outputs=3)
    rows = torch.randn(5, 3, 4)
    expected = torch.stack([rows[:, a] @ head.weight[a] + head.bias[a] for a in range(3)], dim=1)
    torch.testing.assert_close(head(rows), expected)


def test_one_output_is_the_difference_of_two_branches() -> None:
    torch.manual_seed(3)
    two, one = BranchHead(width=4, n_outputs=2), BranchHead(width=4, n_outputs=1)
    one.load_state_dict(two.state_dict())
    rows = torch.randn(5, 2, 4)
    torch.testing.assert_close(one(rows)[:, 0].sigmoid(), two(rows).softmax(dim=1)[:, 1])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"n_outputs": 0}, "n_outputs=0"),
        ({"kind": "coral"}, "kind 'linear' or 'ordered'; got .*kind='coral'"),
        ({"hidden": (8, 0)}, r"hidden=\[8, 0\]"),
        ({"is_branched": True, "hidden": (8,)}, "plain linear head, one row a branch"),
        ({"is_branched": True, "kind": "ordered"}, "or take clam_sb"),
    ],
)
def test_heads_that_do_not_fit_are_refused(settings: dict, says: str) -> None:
    given = {"n_outputs": 3, "kind": "linear", "hidden": (), "is_branched": False} | settings
    with pytest.raises(ValueError, match=f"slide_head: .*needs .*{says}"):
        slide_head(4, given.pop("n_outputs"), **given)
