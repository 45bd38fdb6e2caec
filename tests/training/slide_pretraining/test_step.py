"""One step of slide pretraining: parts equal the whole batch, and dropout is keyed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from slide_runs import micro_slide_config, write_bags

from anlage.bags.loader import BagSet
from anlage.distributed import ALONE
from anlage.training.slide_pretraining.feed import choose_bags, drawn_parts
from anlage.training.slide_pretraining.networks import MaskedBags
from anlage.training.slide_pretraining.state import SlideTraining, fresh_slide_training
from anlage.training.slide_pretraining.step import part_error, slide_step

STILL = (
    *("model.dropout=0", "model.stochastic_depth=0", "optimizer.warmup_epochs=0"),
    "precision=fp32",
)


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> BagSet:
    return BagSet.open(write_bags(tmp_path_factory.mktemp("bags"), n_slides=8))


def begun(bags: BagSet, *overrides: str) -> tuple[SlideTraining, list[MaskedBags]]:
    """A run at step 0, and the parts of its first step."""
    config = micro_slide_config("held_out.share=0", "optimizer.epsilon=1e-2", *overrides)
    chosen = choose_bags(config, bags)
    training = fresh_slide_training(
        config,
        Path("run"),
        {},
        input_width=bags.width,
        n_bags=len(chosen.train),
        device=torch.device("cpu"),
    )
    drawn = drawn_parts(training, chosen, threads=1)
    parts = [next(drawn) for _ in range(config.accumulate)]
    drawn.close()
    return training, parts


def stepped(bags: BagSet, *overrides: str) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Metrics of the first step, and the gradients and weights after it."""
    training, parts = begun(bags, *overrides)
    metrics, _ = slide_step(training, parts)
    named = dict(training.network.named_parameters())
    gradients = {f"{name} gradient": p.grad for name, p in named.items()}
    return metrics, {**named, **gradients}


@pytest.mark.parametrize("more", [("accumulate=2",), ("accumulate=4",), ("engine.recompute=true",)])
def test_parts_and_recomputing_give_the_step_of_the_whole_batch(
    bags: BagSet, more: tuple[str, ...]
) -> None:
    """Bags of unlike sizes, so that a mean over tiles would tell parts apart."""
    metrics, tensors = stepped(bags, *STILL, "bags.max_tiles=null")
    in_parts, taken = stepped(bags, *STILL, "bags.max_tiles=null", *more)
    assert in_parts == pytest.approx(metrics, rel=1e-5)
    for name, tensor in tensors.items():
        assert taken[name] is not None
        torch.testing.assert_close(taken[name], tensor, rtol=1e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize(("device", "pinned"), [("cpu", 0), ("cuda", 2)])
def test_memory_is_pinned_for_a_cuda_run_alone(
    bags: BagSet, monkeypatch: pytest.MonkeyPatch, device: str, pinned: int
) -> None:
    """What goes to the device is, not the whole bags that it is taken from; nothing on a CPU."""
    config = micro_slide_config("accumulate=2")
    chosen = choose_bags(config, bags)
    asked: list[int] = []
    empty = torch.empty

    def counted(*size, pin_memory: bool = False, **how):
        asked.extend([size[0][0]] * pin_memory)
        return empty(*size, **how)

    run = SimpleNamespace(config=config, step=0, steps=1, ranks=ALONE, device=torch.device(device))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", counted)
    parts = list(drawn_parts(run, chosen, threads=1))
    assert asked == [len(part.features_TI) for part in parts][:pinned]


def test_the_loss_is_the_mean_of_bags_one_by_one(bags: BagSet) -> None:
    training, (whole,) = begun(bags, *STILL)
    _, alone = begun(bags, *STILL, "accumulate=4")
    together = part_error(training, whole, 0).detach()
    for number, bag in enumerate(alone):
        (error,) = part_error(training, bag, 0)
        torch.testing.assert_close(error, together[number], rtol=1e-5, atol=1e-6)
    metrics, _ = slide_step(training, [whole])
    assert metrics["loss"] == pytest.approx(float(together.mean()), rel=1e-6)
    assert metrics["tiles"] == sum(whole.lengths)


def test_the_encoder_sees_no_hidden_tile(bags: BagSet) -> None:
    training, (whole,) = begun(bags, *STILL)
    training.network.eval()
    before = training.network.predicted(whole)
    whole.features_TI[~whole.is_visible_T] = 7.0
    assert torch.equal(training.network.predicted(whole), before)
    whole.features_TI[whole.is_visible_T] += 1.0
    assert not torch.allclose(training.network.predicted(whole), before)


def test_dropout_depends_on_the_step_and_the_part_alone(bags: BagSet) -> None:
    training, (whole,) = begun(bags)
    first = part_error(training, whole, 0)
    torch.manual_seed(123)
    assert torch.equal(part_error(training, whole, 0), first)
    assert not torch.equal(part_error(training, whole, 1), first)
    training.step = 1
    assert not torch.equal(part_error(training, whole, 0), first)


def test_weight_decay_spares_biases_and_norms(bags: BagSet) -> None:
    training, (whole,) = begun(bags, *STILL, "optimizer.weight_decay=0.5")
    slide_step(training, [whole])
    decayed = {
        id(p) for group in training.optimizer.param_groups if group["weight_decay"] > 0
        for p in group["params"]
    }  # fmt: skip
    assert {g["weight_decay"] for g in training.optimizer.param_groups} == {0.0, 0.5}
    for name, parameter in training.network.named_parameters():
        spared = name.endswith(".bias") or "norm" in name
        assert (id(parameter) in decayed) is not spared, name
    assert {group["lr"] for group in training.optimizer.param_groups} == {1e-3}
