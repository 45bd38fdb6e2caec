"""Gram anchoring in a run: when its teacher is taken, that it is kept, and when it counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from same_run import assert_same_run, before_steps, metrics_of, run_in_two, tensors_of

from anlage.errors import RecipeError
from anlage.slides.catalogue import Catalogue
from anlage.training.objective_config import Gram
from anlage.training.tile_pretrain import pretrain_tiles
from anlage.training.training_state import is_anchored_at
from micro_recipe import micro_config

STEPS, START, REFRESH = 8, 2, 4
GRAM = "objective.gram={start: 0.25, refresh_every: 0.25, max_refreshes: 1}"
RECIPE = ("steps=8", GRAM, "optimizer.warmup=0", "optimizer.peak_lr=3e-3")


@pytest.mark.parametrize("steps", [1, 7, 100, 1250])
@pytest.mark.parametrize("start", [0.0, 0.3, 0.81, 1.0])
@pytest.mark.parametrize("refresh_every", [None, 0.0001, 0.1, 0.25])
@pytest.mark.parametrize("max_refreshes", [0, 1, 3])
def test_steps_of_anchoring_are_the_start_and_whole_periods_after_it(
    steps: int, start: float, refresh_every: float | None, max_refreshes: int
) -> None:
    gram = Gram(start=start, refresh_every=refresh_every, max_refreshes=max_refreshes)
    found = [step for step in range(steps) if is_anchored_at(gram, step, steps=steps)]
    first = round(start * steps)
    period = 0 if refresh_every is None else max(1, round(refresh_every * steps))
    n = 1 if refresh_every is None else 1 + max_refreshes
    assert found == [first + k * period for k in range(n) if first + k * period < steps]


@pytest.fixture(scope="module")
def straight(catalogue: Catalogue, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("gram") / "run"
    assert pretrain_tiles(micro_config(*RECIPE), catalogue, run, device="cpu").is_finished
    return run


def test_the_term_counts_from_its_start_on(straight: Path) -> None:
    rows = metrics_of(straight)
    assert [row["step"] for row in rows if "loss_gram" in row] == list(range(START, STEPS))
    for row in rows:
        terms = row["loss_dino"] + row["loss_ibot"] + 0.05 * row["loss_kde"]
        assert row["loss"] == pytest.approx(terms + 2.0 * row.get("loss_gram", 0.0), rel=1e-5)
    assert all(row["loss_gram"] > 0 for row in rows[START:])


def test_the_anchor_is_the_teacher_of_its_step_and_lies_in_the_checkpoint(
    straight: Path, catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers, anchors = [], []

    def copies(training, _) -> None:
        teachers.append({n: t.clone() for n, t in training.teacher.encoder.state_dict().items()})
        gram = training.gram
        anchors.append(gram and {n: t.clone() for n, t in gram.state_dict().items()})

    before_steps(monkeypatch, copies)
    pretrain_tiles(micro_config(*RECIPE), catalogue, tmp_path / "run", device="cpu")
    assert anchors[: START + 1] == [None] * (START + 1)  # taken in the step itself
    expected = {3: 2, 4: 2, 5: 4, 6: 4, 7: 4}  # step -> step whose teacher holds before it
    for step, taken in expected.items():
        assert all(torch.equal(t, teachers[taken][n]) for n, t in anchors[step].items()), step
    kept = {n: t for n, t in tensors_of(straight).items() if n.startswith("gram.")}
    assert kept.keys() == {f"gram.{name}" for name in teachers[4]}
    assert all(torch.equal(t, teachers[4][n.removeprefix("gram.")]) for n, t in kept.items())
    assert not torch.equal(teachers[2]["pos_embed"], teachers[4]["pos_embed"])


@pytest.mark.parametrize("stop", [1, START, START + 1, REFRESH, REFRESH + 1])
def test_resume_about_start_and_refresh_is_bit_identical(
    straight: Path, catalogue: Catalogue, tmp_path: Path, stop: int
) -> None:
    def pretrain(run: Path, *, resume: bool = False):
        return pretrain_tiles(micro_config(*RECIPE), catalogue, run, resume=resume, device="cpu")

    run_in_two(pretrain, tmp_path / "run", stop=stop)
    assert_same_run(straight, tmp_path / "run")


def test_a_frozen_teacher_needs_no_anchor() -> None:
    with pytest.raises(RecipeError, match=r"objective\.gram needs self-distillation"):
        micro_config(GRAM, "distill.encoder=somewhere")
