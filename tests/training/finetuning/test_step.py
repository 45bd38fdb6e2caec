"""A step in parts is the step of all its bags, Cox's too; a NaN stops before the weights change."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch

from anlage.bags.loader import BagBatch
from anlage.encoders.slide_model_folder import SlideTask
from anlage.errors import TrainingError
from anlage.models.slide_model import SlideModel
from anlage.objectives.slide_survival import cox_loss
from anlage.training.finetuning.config import FinetuneRates
from anlage.training.finetuning.objective import TaskObjective
from anlage.training.finetuning.optimizer import build_finetune_optimizer, set_finetune_rate
from anlage.training.finetuning.step import Part, StepSettings, take_step

CLASSES = SlideTask(kind="multi_class", target=("label",), classes=("a", "b", "c"))
COX = SlideTask(kind="survival_cox", target=("time", "event"))
ENCODER = {"width": 16, "depth": 2, "n_heads": 2, "segments": [4, 8], "dilations": [1, 2]}


def model(n_outputs: int, *, dropout: float = 0.0, pooling: str = "abmil") -> SlideModel:
    torch.manual_seed(0)
    return SlideModel(
        input_width=6,
        n_outputs=n_outputs,
        slide_encoder={**ENCODER, "dropout": dropout},
        pooling={
            "kind": pooling,
            "width": 8,
            "hidden": 4,
            "input_dropout": 0.0,
            "dropout": dropout,
        },
    )


def bags(targets: Sequence[Sequence[float]], *, seed: int = 0) -> list[tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number, target in enumerate(targets):
        n_tiles = 3 + number % 4
        features = torch.randn(n_tiles, 6, generator=generator).half().float()  # as bags are stored
        cells = torch.stack([torch.arange(n_tiles), torch.zeros(n_tiles)], dim=1).long()
        found.append((features, cells, torch.tensor([target], dtype=torch.float64)))
    return found


def parts_of(found: Sequence[tuple[torch.Tensor, ...]], size: int) -> list[Part]:
    parts = []
    for first in range(0, len(found), size):
        some = found[first : first + size]
        features, cells, targets = (torch.cat(column) for column in zip(*some, strict=True))
        batch = BagBatch(
            tuple(f"slide {first + number}" for number in range(len(some))),
            tuple(range(first, first + len(some))),
            features,
            cells,
            cells,
            tuple(len(bag[0]) for bag in some),
        )
        parts.append(Part(batch, targets))
    return parts


def settings(reads: SlideTask, **changes: object) -> StepSettings:
    objective = TaskObjective(reads=reads)
    common = {"sizes": (), "seed_of": lambda part: part, "told": "step 0"}
    return StepSettings(objective=objective, **{**common, **changes})


def stepped(network: SlideModel, parts: list[Part], how: StepSettings) -> dict[str, float]:
    optimizer = build_finetune_optimizer(network, FinetuneRates(peak_lr=1e-3))
    set_finetune_rate(optimizer, 1e-3)
    sizes = tuple(len(part.batch.lengths) for part in parts)
    return take_step(network, optimizer, parts, replace(how, sizes=sizes))


def gradients(network: SlideModel) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("reads", [CLASSES, COX], ids=["classes", "cox"])
def test_parts_sum_to_the_whole_step(reads: SlideTask) -> None:
    targets = [[number % 3] for number in range(8)]
    if reads is COX:
        targets = [[1.0 + number % 5, number % 3 > 0] for number in range(8)]
    whole = model(TaskObjective(reads=reads).n_outputs)
    split = copy.deepcopy(whole)
    told = stepped(whole, parts_of(bags(targets), 8), settings(reads))
    again = stepped(split, parts_of(bags(targets), 2), settings(reads))
    assert again["loss"] == pytest.approx(told["loss"], rel=1e-5)
    assert again["grad_norm"] == pytest.approx(told["grad_norm"], rel=1e-4)
    expected = gradients(whole)
    for name, gradient in gradients(split).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_two_passes_of_cox_drop_the_same_values() -> None:
    """The oracle keeps the graphs of all parts at once."""
    targets = [[1.0 + number, number % 2 == 0] for number in range(6)]
    parts = parts_of(bags(targets), 2)
    network = model(1, dropout=0.4).train()
    kept = copy.deepcopy(network)
    risks = []
    for number, part in enumerate(parts):
        torch.manual_seed(number)
        batch = part.batch
        risks.append(kept(batch.features_TD, batch.cell_T2, batch.lengths).logits_BC)
    target = torch.cat([part.target_BK for part in parts])
    loss = cox_loss(torch.cat(risks), target[:, 0], target[:, 1])
    loss.backward()
    told = stepped(network, parts, settings(COX))
    assert told["loss"] == pytest.approx(float(loss.detach()))
    expected = gradients(kept)
    for name, gradient in gradients(network).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("reads", [CLASSES, COX], ids=["classes", "cox"])
def test_a_step_holds_one_part_at_a_time(reads: SlideTask) -> None:
    """Each part is dropped, with all that came of it, before the next one is asked for."""
    targets = [[number % 3, 1] if reads is COX else [number % 3] for number in range(8)]
    parts, alive = parts_of(bags(targets), 2), []

    def one_by_one() -> Iterator[Part]:
        while parts:
            assert [features() for features in alive] == [None] * len(alive)
            alive.append(weakref.ref(parts[0].batch.features_TD))
            yield parts.pop(0)

    network = model(TaskObjective(reads=reads).n_outputs, dropout=0.2).train()
    optimizer = build_finetune_optimizer(network, FinetuneRates(peak_lr=1e-3))
    take_step(network, optimizer, one_by_one(), settings(reads, sizes=(2, 2, 2, 2)))
    assert len(alive) == 4


def test_recompute_changes_nothing() -> None:
    targets = [[number % 3] for number in range(4)]
    plain, spared = model(3, dropout=0.3).train(), model(3, dropout=0.3).train()
    stepped(plain, parts_of(bags(targets), 4), settings(CLASSES))
    stepped(spared, parts_of(bags(targets), 4), settings(CLASSES, recompute=True))
    expected = gradients(plain)
    for name, gradient in gradients(spared).items():
        torch.testing.assert_close(gradient, expected[name], msg=name)


def test_a_nan_stops_before_the_weights_change() -> None:
    network = model(3)
    before = copy.deepcopy(network.state_dict())
    found = bags([[0], [1], [2]])
    found[1][0][0, 0] = float("nan")
    with pytest.raises(TrainingError, match="step 0: the loss is not finite.*slide 1"):
        stepped(network, parts_of(found, 1), settings(CLASSES))
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_tiles_that_overflow_stop_too() -> None:
    reads = SlideTask(kind="multi_class", target=("label",), classes=("a", "b"))
    network = model(2, pooling="clam_sb")
    for name, parameter in network.named_parameters():
        if "instance" in name:
            parameter.data.fill_(float("inf"))
    with pytest.raises(TrainingError, match="step 0: the loss is not finite.*slide 1"):
        stepped(network, parts_of(bags([[0], [1]]), 2), settings(reads, instance_weight=0.5))


def test_thresholds_that_do_not_fall_stop_too() -> None:
    reads = SlideTask(kind="ordinal", target=("grade",), classes=("0", "1", "2", "3"))
    how = settings(reads)
    how = replace(how, objective=replace(how.objective, link="cumulative"))
    with pytest.raises(TrainingError, match="step 0: ordinal_loss: needs logits that fall.*slide"):
        stepped(model(3), parts_of(bags([[0], [1], [2]]), 3), how)


def test_a_gradient_that_overflows_stops_too() -> None:
    network = model(1)
    before = copy.deepcopy(network.state_dict())
    network.head[0].weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(TrainingError, match="the gradient is not finite"):
        stepped(network, parts_of(bags([[1, 1], [2, 0]]), 2), settings(COX))
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_the_gradient_is_clipped_as_a_whole() -> None:
    network = model(3)
    told = stepped(network, parts_of(bags([[0], [1]]), 2), settings(CLASSES, clip_norm=1e-3))
    norm = torch.stack([g.norm() for g in gradients(network).values()]).norm()
    assert told["grad_norm"] > 1e-3
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)


def test_clams_tiles_weigh_as_told() -> None:
    reads = SlideTask(kind="multi_class", target=("label",), classes=("a", "b"))
    parts = parts_of(bags([[0], [1], [1]]), 3)
    losses = [
        stepped(model(2, pooling="clam_sb"), parts, settings(reads, instance_weight=share))["loss"]
        for share in (0.0, 0.5, 0.999)
    ]
    of_bags, half, of_tiles = losses
    assert half == pytest.approx((of_bags + of_tiles) / 2, rel=1e-2)
    assert of_bags != pytest.approx(of_tiles, rel=1e-2)
