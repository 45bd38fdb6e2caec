"""One step's loss against the sum written out: one image at a time, one pair of views at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from anlage.training.student_teacher import EncoderWithHead, StepLoss, step_loss
from anlage.training.network_config import Architecture, Head
from anlage.training.objective_config import Objective
from anlage.training.section import Ramp
from reference.losses import slow_dino_loss, slow_ibot_loss, slow_kde_loss, slow_koleo_loss
from reference.sinkhorn import slow_sinkhorn_targets

N_TILES, N_LOCAL, N_PROTOTYPES, TEACHER_TEMPERATURE = 3, 2, 8, 0.06
GLOBAL_PX, LOCAL_PX = 32, 16
WEIGHTS = {"dino": 0.7, "ibot": 1.3, "spread": 0.2}


def objective(targets: str, spread: str) -> Objective:
    return Objective(
        dino_weight=WEIGHTS["dino"],
        ibot_weight=WEIGHTS["ibot"],
        spread=spread,
        spread_weight=WEIGHTS["spread"],
        targets=targets,
        teacher_temperature=Ramp(start=TEACHER_TEMPERATURE, end=TEACHER_TEMPERATURE),
    )


def network(seed: int) -> EncoderWithHead:
    """A network whose weights are large enough for images to look different to it."""
    torch.manual_seed(seed)
    made = EncoderWithHead(
        Architecture(
            image_px=GLOBAL_PX, patch_px=8, width=16, depth=1, n_heads=2, layer_scale=None
        ),
        Head(n_prototypes=N_PROTOTYPES, hidden=12, bottleneck=6),
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


@pytest.fixture
def networks() -> tuple[EncoderWithHead, EncoderWithHead]:
    return network(1), network(2).requires_grad_(requires_grad=False)


@pytest.fixture
def views() -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    return (
        torch.randn(2 * N_TILES, 3, GLOBAL_PX, GLOBAL_PX),
        torch.randn(N_LOCAL * N_TILES, 3, LOCAL_PX, LOCAL_PX),
    )


@pytest.fixture
def masks() -> Tensor:
    """Masked patches of each global view: 0, 5, 1, 0, 16 and 3 of 16."""
    made = torch.zeros(2 * N_TILES, 16, dtype=torch.bool)
    for view, n_masked in enumerate((0, 5, 1, 0, 16, 3)):
        order = torch.randperm(16, generator=torch.Generator().manual_seed(view))
        made[view, order[:n_masked]] = True
    return made


@pytest.fixture
def centers() -> dict[str, Tensor]:
    torch.manual_seed(4)
    return {name: 0.1 * torch.randn(N_PROTOTYPES) for name in ("cls", "patch")}


def loss_of(networks, views, masks, centers, targets: str, spread: str) -> StepLoss:
    return step_loss(
        networks,
        views,
        masks,
        objective=objective(targets, spread),
        teacher_temperature=TEACHER_TEMPERATURE,
        centers=centers,
    )


def slow_targets(logits: np.ndarray, center: Tensor, targets: str) -> np.ndarray:
    if targets == "sinkhorn":
        return slow_sinkhorn_targets(logits, TEACHER_TEMPERATURE, 3)
    score = np.exp((logits - center.numpy()) / TEACHER_TEMPERATURE)
    return score / score.sum(axis=1, keepdims=True)


@torch.no_grad()
def slow_terms(networks, views, masks, centers, targets: str, spread: str) -> dict[str, float]:
    """Every image through the networks by itself; then the losses as loops over pairs."""
    student, teacher = networks
    whole = [teacher.encoder.embed(image[None]) for image in views[0]]
    cls = np.stack([teacher.head(seen.cls_BD)[0].numpy() for seen in whole])
    masked = [(i, n) for i in range(2 * N_TILES) for n in range(16) if masks[i, n]]
    patch = np.stack([teacher.head(whole[i].patches_BND[:, n])[0].numpy() for i, n in masked])
    cls_targets = slow_targets(cls, centers["cls"], targets).reshape(2, N_TILES, -1)
    patch_targets = slow_targets(patch, centers["patch"], targets)

    hidden = [
        student.encoder([image[None]], [mask[None]])[0]
        for image, mask in zip(views[0], masks, strict=True)
    ]
    local = [student.encoder.embed(image[None]) for image in views[1]]
    logits = np.stack([student.head(seen.cls_BD)[0].numpy() for seen in [*hidden, *local]])
    guesses = np.stack([student.head(hidden[i].patches_BND[:, n])[0].numpy() for i, n in masked])
    embedding = np.stack([seen.cls_BD[0].numpy() for seen in hidden])
    by_view = np.split(embedding, 2)
    apart = {
        "kde": lambda: sum(slow_kde_loss(view, 5.0) for view in by_view),
        "koleo": lambda: sum(slow_koleo_loss(view) for view in by_view),
    }
    return {
        "dino": slow_dino_loss(logits.reshape(2 + N_LOCAL, N_TILES, -1), cls_targets, 0.1),
        "ibot": slow_ibot_loss(
            guesses, patch_targets, [i for i, _ in masked], n_images=2 * N_TILES, t=0.1
        ),
        spread: apart[spread](),
    }


@pytest.mark.parametrize(("targets", "spread"), [("sinkhorn", "kde"), ("centering", "koleo")])
def test_the_loss_is_the_sum_written_out(
    networks, views, masks, centers, targets: str, spread: str
) -> None:
    loss = loss_of(networks, views, masks, centers, targets, spread)
    slow = slow_terms(networks, views, masks, centers, targets, spread)
    assert {name: float(term) for name, term in loss.terms.items()} == pytest.approx(slow, rel=1e-4)
    weight = WEIGHTS | {spread: WEIGHTS["spread"]}
    total = sum(weight[name] * term for name, term in slow.items())
    assert float(loss.total.detach()) == pytest.approx(total, rel=1e-4)
    assert float(loss.per_tile_B.mean()) == pytest.approx(slow["dino"], rel=1e-4)


def test_gradients_reach_the_student_alone(networks, views, masks, centers) -> None:
    loss_of(networks, views, masks, centers, "sinkhorn", "kde").total.backward()
    student, teacher = networks
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())


def test_centers_move_under_centering_alone(networks, views, masks, centers) -> None:
    kept = loss_of(networks, views, masks, centers, "sinkhorn", "kde").centers
    assert all(torch.equal(kept[name], centers[name]) for name in centers)
    moved = loss_of(networks, views, masks, centers, "centering", "kde").centers
    seen = networks[1].encoder.embed(views[0])
    for name, tokens in (("cls", seen.cls_BD), ("patch", seen.patches_BND[masks])):
        expected = 0.9 * centers[name] + 0.1 * networks[1].head(tokens).mean(dim=0)
        torch.testing.assert_close(moved[name], expected)


def test_the_entropy_is_that_of_the_class_tokens_targets(networks, views, masks, centers) -> None:
    loss = loss_of(networks, views, masks, centers, "centering", "none")
    assert loss.terms.keys() == {"dino", "ibot"}
    logits = networks[1].head(networks[1].encoder.embed(views[0]).cls_BD).numpy()
    p = slow_targets(logits, centers["cls"], "centering")
    assert float(loss.target_entropy) == pytest.approx(-(p * np.log(p)).sum(1).mean(), rel=1e-4)
