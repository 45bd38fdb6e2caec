"""One step's loss against the sum written out: one image at a time, one pair of views at a time."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor

from anlage.training.lesson import Lesson, MaskedPatches, Part, teach
from anlage.training.network_config import Architecture, Head
from anlage.training.networks import EncoderWithHeads
from anlage.training.objective_config import Objective
from anlage.training.section import Ramp
from anlage.training.step_loss import Anchor, PassSettings, StepLoss, learn
from reference.losses import (
    slow_dino_loss,
    slow_gram_loss,
    slow_ibot_loss,
    slow_kde_loss,
    slow_koleo_loss,
)
from reference.sinkhorn import slow_sinkhorn_targets

N_TILES, N_LOCAL, N_PROTOTYPES, TEACHER_TEMPERATURE = 4, 2, 8, 0.06
GLOBAL_PX, LOCAL_PX = 32, 16
WEIGHTS = {"dino": 0.7, "ibot": 1.3, "spread": 0.2}


def objective(targets: str, spread: str, **changes) -> Objective:
    return Objective(
        dino_weight=WEIGHTS["dino"],
        ibot_weight=WEIGHTS["ibot"],
        spread=spread,
        spread_weight=WEIGHTS["spread"],
        targets=targets,
        teacher_temperature=Ramp(start=TEACHER_TEMPERATURE, end=TEACHER_TEMPERATURE),
        **changes,
    )


def network(
    seed: int, *, has_untied_heads: bool = True, stochastic_depth: float = 0.0
) -> EncoderWithHeads:
    """A network whose weights are large enough for images to look different to it."""
    torch.manual_seed(seed)
    made = EncoderWithHeads(
        Architecture(
            image_px=GLOBAL_PX, patch_px=8, width=16, depth=2, n_heads=2, layer_scale=None,
            stochastic_depth=stochastic_depth,
        ),
        Head(n_prototypes=N_PROTOTYPES, hidden=12, bottleneck=6),
        Head(n_prototypes=N_PROTOTYPES + 3, hidden=10, bottleneck=5) if has_untied_heads else None,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


@pytest.fixture(params=[True, False], ids=["untied", "tied"])
def networks(request) -> tuple[EncoderWithHeads, EncoderWithHeads]:
    student = network(1, has_untied_heads=request.param)
    teacher = network(2, has_untied_heads=request.param)
    return student, teacher.requires_grad_(requires_grad=False)


@pytest.fixture
def views() -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    return (
        torch.randn(2 * N_TILES, 3, GLOBAL_PX, GLOBAL_PX),
        torch.randn(N_LOCAL * N_TILES, 3, LOCAL_PX, LOCAL_PX),
    )


@pytest.fixture
def masks() -> Tensor:
    """Masked patches of each global view: 0, 5, 1, 0, 16, 3, 0 and 7 of 16."""
    made = torch.zeros(2 * N_TILES, 16, dtype=torch.bool)
    for view, n_masked in enumerate((0, 5, 1, 0, 16, 3, 0, 7)):
        order = torch.randperm(16, generator=torch.Generator().manual_seed(view))
        made[view, order[:n_masked]] = True
    return made


@pytest.fixture
def centers(networks) -> dict[str, Tensor]:
    torch.manual_seed(4)
    heads = {"cls": networks[1].head, "patch": networks[1].head_of_patches}
    return {name: 0.1 * torch.randn(len(head.prototypes())) for name, head in heads.items()}


def parts_of(views, masks, n_parts: int) -> list[Part]:
    """The step's views dealt into parts, a run of tiles each."""
    size = N_TILES // n_parts
    made = []
    for first in range(0, N_TILES, size):
        tiles = slice(first, first + size)
        cut = [view.unflatten(0, (-1, N_TILES))[:, tiles].flatten(0, 1) for view in (*views, masks)]
        hidden = MaskedPatches.of(cut[2], device=torch.device("cpu"))
        made.append(Part(cut[0], cut[1], tiles, hidden))
    return made


def step_of(
    networks, views, masks, centers, targets: str, spread: str, *,
    n_parts: int = 1, anchor: Anchor | None = None, seed: int | None = None, **changes,
) -> tuple[StepLoss, Lesson]:  # fmt: skip
    student, teacher = networks
    chosen = objective(targets, spread, **changes)
    parts = parts_of(views, masks, n_parts)
    lesson = teach(
        teacher, parts, objective=chosen, temperature=TEACHER_TEMPERATURE, centers=centers
    )

    def randomness(part: int) -> torch.Generator | None:
        return None if seed is None else torch.Generator().manual_seed(seed + part)

    how = PassSettings(autocast=nullcontext, randomness=randomness)
    return learn(student, parts, lesson, objective=chosen, how=how, anchor=anchor), lesson


def gradients(student: EncoderWithHeads) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}
    student.zero_grad()
    return found


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
    say = teacher.head_of_patches
    patch = np.stack([say(whole[i].patches_BND[:, n])[0].numpy() for i, n in masked])
    cls_targets = slow_targets(cls, centers["cls"], targets).reshape(2, N_TILES, -1)
    patch_targets = slow_targets(patch, centers["patch"], targets)

    hidden = [
        student.encoder([image[None]], [mask[None]])[0]
        for image, mask in zip(views[0], masks, strict=True)
    ]
    local = [student.encoder.embed(image[None]) for image in views[1]]
    logits = np.stack([student.head(seen.cls_BD)[0].numpy() for seen in [*hidden, *local]])
    guess = student.head_of_patches
    guesses = np.stack([guess(hidden[i].patches_BND[:, n])[0].numpy() for i, n in masked])
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
@pytest.mark.parametrize("n_parts", [1, 2])
def test_the_loss_is_the_sum_written_out(
    networks, views, masks, centers, targets: str, spread: str, n_parts: int
) -> None:
    loss, _ = step_of(networks, views, masks, centers, targets, spread, n_parts=n_parts)
    slow = slow_terms(networks, views, masks, centers, targets, spread)
    assert {name: float(term) for name, term in loss.terms.items()} == pytest.approx(slow, rel=1e-4)
    weight = WEIGHTS | {spread: WEIGHTS["spread"]}
    total = sum(weight[name] * term for name, term in slow.items())
    assert float(loss.total) == pytest.approx(total, rel=1e-4)
    assert float(loss.per_tile_B.mean()) == pytest.approx(slow["dino"], rel=1e-4)


@pytest.mark.parametrize(("targets", "spread"), [("sinkhorn", "kde"), ("centering", "koleo")])
@pytest.mark.parametrize("memory_mb", [512.0, 1e-4])
def test_parts_and_pieces_give_the_gradient_of_the_whole_step(
    networks, views, masks, centers, targets: str, spread: str, memory_mb: float
) -> None:
    """In float64, where sums in another order differ by nothing that matters."""
    exact = tuple(network.double() for network in networks)
    views = tuple(view.double() for view in views)
    centers = {name: center.double() for name, center in centers.items()}
    anchor = Anchor(network(5).double().encoder, 0.5)
    given = (exact, views, masks, centers, targets, spread)
    whole, _ = step_of(*given, anchor=anchor)
    wanted = gradients(exact[0])
    for n_parts in (2, 4):
        parted, _ = step_of(*given, anchor=anchor, n_parts=n_parts, prototype_memory_mb=memory_mb)
        found = gradients(exact[0])
        assert found.keys() == wanted.keys()
        for name, gradient in wanted.items():
            torch.testing.assert_close(found[name], gradient, rtol=2e-5, atol=2e-7, msg=name)
        assert float(parted.total) == pytest.approx(float(whole.total), rel=1e-6)


def test_dropped_paths_are_the_same_in_both_passes_of_a_part(views, masks) -> None:
    """The spreading term's gradient belongs to the very embeddings that it is given to."""
    student = network(1, stochastic_depth=0.5).train()
    teacher = network(2).requires_grad_(requires_grad=False)
    centers = {"cls": torch.zeros(N_PROTOTYPES), "patch": torch.zeros(N_PROTOTYPES + 3)}
    given = ((student, teacher), views, masks, centers, "sinkhorn", "kde")
    losses = [step_of(*given, n_parts=2, seed=11)[0] for _ in range(2)]
    assert losses[0].terms["kde"] == losses[1].terms["kde"]
    seen = []
    for number, part in enumerate(parts_of(views, masks, 2)):
        drawn = torch.Generator().manual_seed(11 + number)
        out = student.encoder(
            [part.global_crops, part.local_crops], [part.masked.masks, None], generator=drawn
        )
        seen.append(out[0].cls_BD.unflatten(0, (2, -1)).detach())
    by_view = torch.cat(seen, dim=1).numpy()
    expected = sum(slow_kde_loss(view, 5.0) for view in by_view)
    assert float(losses[0].terms["kde"]) == pytest.approx(expected, rel=1e-4)


def test_gradients_reach_the_student_alone(networks, views, masks, centers) -> None:
    step_of(networks, views, masks, centers, "sinkhorn", "kde")
    student, teacher = networks
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())


def test_centers_move_under_centering_alone(networks, views, masks, centers) -> None:
    _, kept = step_of(networks, views, masks, centers, "sinkhorn", "kde")
    assert all(torch.equal(kept.centers[name], centers[name]) for name in centers)
    _, moved = step_of(networks, views, masks, centers, "centering", "kde")
    teacher = networks[1]
    seen = teacher.encoder.embed(views[0])
    pairs = {
        "cls": (teacher.head, seen.cls_BD),
        "patch": (teacher.head_of_patches, seen.patches_BND[masks]),
    }
    for name, (head, tokens) in pairs.items():
        expected = 0.9 * centers[name] + 0.1 * head(tokens).mean(dim=0)
        torch.testing.assert_close(moved.centers[name], expected)


def test_the_entropy_is_that_of_the_class_tokens_targets(networks, views, masks, centers) -> None:
    loss, lesson = step_of(networks, views, masks, centers, "centering", "none")
    assert loss.terms.keys() == {"dino", "ibot"}
    logits = networks[1].head(networks[1].encoder.embed(views[0]).cls_BD).numpy()
    p = slow_targets(logits, centers["cls"], "centering")
    entropy, usage = lesson.cls.statistics()
    assert float(entropy) == pytest.approx(-(p * np.log(p)).sum(1).mean(), rel=1e-4)
    mean = p.mean(0)
    assert float(usage) == pytest.approx(np.exp(-(mean * np.log(mean)).sum()) / len(mean), rel=1e-4)


def test_gram_anchoring_holds_patches_of_the_student_to_those_of_the_anchor(
    networks, views, masks, centers
) -> None:
    student = networks[0]
    same = Anchor(copy.deepcopy(student.encoder), 2.0)
    nothing_hidden = torch.zeros_like(masks)
    given = (networks, views, nothing_hidden, centers, "sinkhorn", "none")
    at_equality, _ = step_of(*given, anchor=same)
    assert float(at_equality.terms["gram"]) == pytest.approx(0, abs=1e-10)
    other = Anchor(network(9).encoder, 2.0)
    apart, _ = step_of(*given, anchor=other)
    with torch.no_grad():
        tokens = [e.embed(views[0]).patches_BND.numpy() for e in (student.encoder, other.encoder)]
    expected = np.mean(slow_gram_loss(*tokens))
    assert float(apart.terms["gram"]) == pytest.approx(expected, rel=1e-4)
    without = float(apart.total) - 2.0 * float(apart.terms["gram"])
    assert without == pytest.approx(float(at_equality.total), rel=1e-4)


def test_dino_alone_needs_no_masks(networks, views, masks, centers) -> None:
    student, teacher = networks
    chosen = Objective(
        ibot_weight=0.0, spread="none", targets="centering",
        teacher_temperature=Ramp(start=TEACHER_TEMPERATURE, end=TEACHER_TEMPERATURE),
    )  # fmt: skip
    parts = [Part(*views, slice(0, N_TILES))]
    lesson = teach(
        teacher, parts, objective=chosen, temperature=TEACHER_TEMPERATURE, centers=centers
    )
    how = PassSettings(autocast=nullcontext, randomness=lambda _: None)
    loss = learn(student, parts, lesson, objective=chosen, how=how)
    nothing_hidden = torch.zeros_like(masks)
    slow, _ = step_of(networks, views, nothing_hidden, centers, "centering", "none")
    assert loss.terms.keys() == {"dino"}
    assert float(loss.total) == pytest.approx(float(slow.terms["dino"]), rel=1e-6)
    assert lesson.patches is None
