"""The objectives equal numbers that DINOv2's own code gave (tests/golden)."""

import json
from pathlib import Path

import pytest
import torch
from golden import inputs

from anlage.objectives.centering import next_center
from anlage.objectives.koleo import koleo_loss
from reference.whole_logits import centered_targets, dino_loss, ibot_loss, sinkhorn_targets

GOLDEN = json.loads((Path(inputs.__file__).parent / "dinov2_losses.json").read_text())
TEACHER_CLS = torch.from_numpy(inputs.TEACHER_CLS)


def balanced(logits: torch.Tensor) -> torch.Tensor:
    return sinkhorn_targets(logits, temperature=inputs.TEACHER_TEMPERATURE)


def test_sinkhorn() -> None:
    targets = balanced(TEACHER_CLS.flatten(0, 1))
    torch.testing.assert_close(targets[0], torch.tensor(GOLDEN["sinkhorn_first_row"]))


def test_centering() -> None:
    center = torch.from_numpy(inputs.CENTER)
    rows, temperature = TEACHER_CLS.flatten(0, 1), inputs.TEACHER_TEMPERATURE
    targets = centered_targets(rows, center, temperature=temperature)
    torch.testing.assert_close(targets[0], torch.tensor(GOLDEN["centered_first_row"]))
    following = next_center(center, TEACHER_CLS)
    torch.testing.assert_close(following, torch.tensor(GOLDEN["next_center"]))


def test_dino() -> None:
    targets = balanced(TEACHER_CLS.flatten(0, 1)).view(TEACHER_CLS.shape)
    loss = dino_loss(torch.from_numpy(inputs.STUDENT_CLS), targets)
    assert loss.item() == pytest.approx(GOLDEN["dino"], rel=1e-6)


def test_ibot() -> None:
    weight = torch.cat([torch.full((n,), 1 / n) for n in inputs.MASKED_PATCHES if n])
    loss = ibot_loss(
        torch.from_numpy(inputs.STUDENT_PATCHES),
        balanced(torch.from_numpy(inputs.TEACHER_PATCHES)),
        weight_M=weight,
        n_images=len(inputs.MASKED_PATCHES),
    )
    assert loss.item() == pytest.approx(GOLDEN["ibot"], rel=1e-6)


def test_koleo() -> None:
    loss = koleo_loss(torch.from_numpy(inputs.EMBEDDING))
    assert loss.item() == pytest.approx(GOLDEN["koleo"], rel=1e-5)
