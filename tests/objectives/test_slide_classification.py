"""Losses of slide labels against one term at a time, known values, direction, refusals."""

import math

import pytest
import torch
from objectives.slide_loss_checks import descended, follows_its_gradient

from anlage.objectives.slide_classification import (
    binary_loss,
    binary_probability,
    class_loss,
    class_probabilities,
    label_loss,
    label_probabilities,
)
from reference.slow_slide_losses import slow_binary_loss, slow_class_loss, slow_label_loss

NAN = float("nan")
LOGITS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)) * 3
CLASSES = torch.tensor([0, 3, 1, 1, 2, 0])
BINARY = torch.tensor([0, 1, 1, 0, 1, 0])
LABELS = torch.tensor([[1, 0, NAN, 1.0]] * 2 + [[0, NAN, NAN, 1]] * 2 + [[NAN] * 4, [1, 1, 0, 0]])
WEIGHTS = torch.tensor([1.0, 2, 0.5, 3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_binary_equals_one_bag_at_a_time(dtype: torch.dtype) -> None:
    logits = LOGITS[:, :1].to(dtype)
    found = binary_loss(logits, BINARY)
    expected = [
        slow_binary_loss(logit, target)
        for logit, target in zip(logits[:, 0].tolist(), BINARY.tolist(), strict=True)
    ]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize("target", [BINARY.bool(), BINARY.double()])
def test_binary_takes_targets_of_any_dtype(target: torch.Tensor) -> None:
    logits = LOGITS[:, :1]
    torch.testing.assert_close(binary_loss(logits, target), binary_loss(logits, BINARY))


def test_classes_equal_one_bag_at_a_time() -> None:
    rows = list(zip(LOGITS.tolist(), CLASSES.tolist(), strict=True))
    expected = [slow_class_loss(logits, target) for logits, target in rows]
    torch.testing.assert_close(class_loss(LOGITS, CLASSES), torch.tensor(expected))
    expected = [slow_class_loss(logits, target, WEIGHTS[target].item()) for logits, target in rows]
    found = class_loss(LOGITS, CLASSES, class_weight_C=WEIGHTS)
    torch.testing.assert_close(found, torch.tensor(expected))


def test_labels_equal_one_bag_at_a_time_and_leave_the_missing_out() -> None:
    expected = [
        slow_label_loss(logits, targets, WEIGHTS.tolist())
        for logits, targets in zip(LOGITS.tolist(), LABELS.tolist(), strict=True)
    ]
    found = label_loss(LOGITS, LABELS, positive_weight_C=WEIGHTS)
    torch.testing.assert_close(found, torch.tensor(expected))
    assert found[4] == 0


def test_a_missing_label_gives_no_gradient() -> None:
    logits = LOGITS.clone().requires_grad_()
    label_loss(logits, LABELS).sum().backward()
    assert torch.equal(logits.grad == 0, LABELS.isnan())


def test_known_values() -> None:
    zero = torch.zeros(2, 5)
    assert class_loss(zero, torch.tensor([0, 4])).tolist() == pytest.approx([math.log(5)] * 2)
    ln2 = [math.log(2)] * 2
    assert binary_loss(zero[:, :1], torch.tensor([0, 1])).tolist() == pytest.approx(ln2)
    assert label_loss(zero, torch.ones(2, 5)).tolist() == pytest.approx(ln2)
    assert class_probabilities(zero)[0].tolist() == pytest.approx([0.2] * 5)
    assert binary_probability(zero[:, :1]).tolist() == [0.5, 0.5]
    assert label_probabilities(zero)[0].tolist() == [0.5] * 5


@pytest.mark.parametrize("size", [100.0, 1e4])
def test_sure_logits_cost_nothing_when_right_and_their_size_when_wrong(size: float) -> None:
    logits, target = torch.tensor([[size], [-size], [size]]), torch.tensor([1, 0, 0])
    assert binary_loss(logits, target).tolist() == pytest.approx([0, 0, size], abs=1e-6)
    two = torch.cat([torch.zeros(3, 1), logits], dim=1)
    assert class_loss(two, target).tolist() == pytest.approx([0, 0, size], abs=1e-6)


LOSSES = {
    "binary": lambda z: binary_loss(z[:, :1], BINARY),
    "class": lambda z: class_loss(z, CLASSES, class_weight_C=WEIGHTS),
    "label": lambda z: label_loss(z, LABELS, positive_weight_C=WEIGHTS),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradient(name: str) -> None:
    follows_its_gradient(LOSSES[name], LOGITS)


def test_descent_learns_the_labels() -> None:
    logits = descended(LOSSES["class"], torch.zeros(6, 4), rate=2.0)
    assert torch.equal(class_probabilities(logits).argmax(dim=1), CLASSES)
    logits = descended(LOSSES["binary"], torch.zeros(6, 1))
    assert torch.equal(binary_probability(logits) > 0.5, BINARY.bool())
    logits = descended(LOSSES["label"], torch.zeros(6, 4))
    known = ~LABELS.isnan()
    assert torch.equal((label_probabilities(logits) > 0.5)[known], LABELS[known].bool())


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: binary_loss(LOGITS, BINARY), "shape (bags, 1) and targets of shape (bags,)"),
        (lambda: binary_loss(LOGITS[:, :1], BINARY[:, None]), "got (6, 1) and (6, 1)"),
        (lambda: binary_loss(LOGITS[:, :1], CLASSES), "whole numbers, 0 to 1; got [3.0, 2.0]"),
        (lambda: binary_loss(LOGITS[:, :1] * NAN, BINARY), "finite logits; got 6 of 6"),
        (lambda: class_loss(LOGITS, CLASSES[:4]), "got (6, 4) and (4,)"),
        (lambda: class_loss(LOGITS, CLASSES + 1), "0 to 3; got [4.0]"),
        (lambda: class_loss(LOGITS, CLASSES - 1), "0 to 3; got [-1.0, -1.0]"),
        (lambda: class_loss(LOGITS, CLASSES * NAN), "0 to 3; got [nan"),
        (lambda: class_loss(LOGITS, CLASSES + 0.5), "0 to 3; got [0.5"),
        (lambda: class_loss(LOGITS[:0], CLASSES[:0]), "got (0, 4)"),
        (lambda: class_loss(LOGITS, CLASSES, class_weight_C=WEIGHTS[:3]), "4 class weights"),
        (lambda: class_loss(LOGITS, CLASSES, class_weight_C=-WEIGHTS), "0 or more; got [-1.0"),
        (lambda: label_loss(LOGITS, LABELS[:, :3]), "targets of shape (bags, outputs)"),
        (lambda: label_loss(LOGITS, LABELS * 2), "0 to 1; got [2.0, 2.0, 2.0, 2.0]"),
    ],
)
def test_refusals(call, says: str) -> None:
    with pytest.raises(ValueError, match="_loss: needs") as refusal:
        call()
    assert says in str(refusal.value)
