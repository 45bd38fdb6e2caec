"""The loss of a task is the one that its recipe names."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from anlage.objectives.slide_ordinal import ordinal_loss
from anlage.objectives.slide_regression import regression_loss
from anlage.objectives.slide_survival import cox_loss
from anlage.training.finetuning.objective import TaskObjective, objective_of
from anlage.training.finetuning.targets import Targets
from anlage.training.finetuning.task_config import Task


def objective(
    rows: list[list[float]], classes: tuple[str, ...] = (), **task: object
) -> TaskObjective:
    n = len(rows)
    names = np.array([f"s{number}" for number in range(n)])
    found = Targets(
        task=Task(**task),
        slide_ids=tuple(names.tolist()),
        patient_N=names,
        site_N=None,
        target_NK=np.array(rows, dtype=np.float64),
        classes=classes,
    )
    return objective_of(found, np.arange(n)).on(torch.device("cpu"))


def test_numbers_have_their_penalty() -> None:
    target, value = torch.tensor([[-1.0], [1.0]]), torch.tensor([[4.0], [1.5]])
    for penalty in ("mse", "huber"):
        of = objective(target.tolist(), kind="regression", target="y", penalty=penalty)
        expected = regression_loss(value, target, penalty=penalty)
        torch.testing.assert_close(of.per_bag(value, target.double()), expected)
    assert float(expected[0]) == pytest.approx(4.5)  # linear beyond one deviation


def test_grades_have_their_link() -> None:
    logits, grade = torch.tensor([[2.0, -1.0], [1.0, 0.5]]), torch.tensor([[1.0], [2.0]])
    found = {}
    for link in ("coral", "cumulative"):
        of = objective([[0], [1], [2]], ("0", "1", "2"), kind="ordinal", target="y", link=link)
        found[link] = of.per_bag(logits, grade.double())
        torch.testing.assert_close(found[link], ordinal_loss(logits, grade[:, 0], link=link))
    assert not torch.allclose(found["coral"], found["cumulative"])


def test_events_at_one_time_share_their_risk_set_as_told() -> None:
    risk, target = torch.zeros(4, 1), torch.tensor([[1.0, 1], [1, 1], [2, 0], [3, 1]])
    found = {}
    for ties in ("efron", "breslow"):
        of = objective(target.tolist(), kind="survival_cox", time="t", event="e", ties=ties)
        found[ties] = float(of.of_step(risk, target.double()))
        assert found[ties] == float(cox_loss(risk, target[:, 0], target[:, 1], ties=ties))
    assert found["efron"] < found["breslow"]


def test_censored_slides_weigh_as_told() -> None:
    logits, target = torch.zeros(2, 2), torch.tensor([[1.0, 1], [1.0, 0]]).double()
    task = {"kind": "survival_discrete", "time": "t", "event": "e", "intervals": 2}
    rows = [[1, 1], [2, 1], [3, 1], [4, 0]]
    whole, less = (objective(rows, **task, censored_weight=weight) for weight in (1.0, 0.25))
    found, expected = less.per_bag(logits, target), whole.per_bag(logits, target)
    torch.testing.assert_close(found, expected * torch.tensor([1.0, 0.25]))
