"""Pieces against the whole matrix of scores: values, gradients, and that it never exists."""

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from anlage.objectives.prototypes import (
    PrototypeScores,
    PrototypeTargets,
    prototype_cross_entropy,
)
from anlage.objectives.sinkhorn import sinkhorn_bias

V, G, B, E, P = 5, 2, 12, 8, 40
ONE_TILE_MB = 1e-9
pieces = pytest.mark.parametrize("memory_mb", [ONE_TILE_MB, 0.004, 0.01, 512.0])


def tokens(n_views: int, *, seed: int, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(n_views, B, E, generator=generator, dtype=torch.float64)
    return functional.normalize(drawn, dim=-1).to(dtype)


def prototypes(seed: int, *, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(
        torch.randn(P, E, generator=generator, dtype=torch.float64), dim=-1
    ).to(dtype)


def targets(memory_mb: float, *, dtype=torch.float64) -> PrototypeTargets:
    scores = PrototypeScores(
        tokens(G, seed=1, dtype=dtype), prototypes(2, dtype=dtype),
        temperature=0.07, memory_mb=memory_mb,
    )  # fmt: skip
    return PrototypeTargets(scores, sinkhorn_bias(scores))


PAIRS = torch.rand(V, G, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
WEIGHT = torch.rand(B, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def whole_loss(student: torch.Tensor, axes: torch.Tensor) -> torch.Tensor:
    """The formula of the docstring on whole matrices, through autograd."""
    teacher = tokens(G, seed=1).flatten(0, 1) @ prototypes(2).T / 0.07
    balanced = teacher.exp()
    for _ in range(3):
        balanced = balanced / balanced.sum(0)
        balanced = balanced / balanced.sum(1, keepdim=True)
    said = balanced.view(G, B, P)
    log_student = (student @ axes.T / 0.1).log_softmax(-1)
    return -torch.einsum("vg,b,gbp,vbp->", PAIRS, WEIGHT, said, log_student)


@pieces
def test_loss_and_gradients_equal_the_whole_matrix(memory_mb: float) -> None:
    student = tokens(V, seed=5).requires_grad_()
    axes = prototypes(6).requires_grad_()
    loss, per_tile = prototype_cross_entropy(
        student, axes, targets(memory_mb), pairs_VG=PAIRS, weight_B=WEIGHT, temperature=0.1
    )
    wanted = whole_loss(student, axes)
    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=0)
    torch.testing.assert_close((WEIGHT * per_tile).sum(), wanted.detach(), rtol=1e-12, atol=0)
    found = torch.autograd.grad(3 * loss, [student, axes])
    for ours, theirs in zip(found, torch.autograd.grad(3 * wanted, [student, axes]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pieces
def test_the_bias_of_pieces_is_that_of_the_whole(memory_mb: float) -> None:
    torch.testing.assert_close(targets(memory_mb).bias_P, targets(512.0).bias_P, rtol=1e-12, atol=0)


def test_a_part_says_what_the_whole_says_of_its_tiles() -> None:
    for memory_mb in (ONE_TILE_MB, 512.0):
        whole = targets(memory_mb)
        part = whole.part(slice(3, 7))
        torch.testing.assert_close(part.of(slice(1, 3)), whole.of(slice(4, 6)))
        assert part.scores.n_tiles == 4


def test_gradient_only_where_it_is_wanted() -> None:
    student, axes = tokens(V, seed=5), prototypes(6).requires_grad_()
    loss, per_tile = prototype_cross_entropy(
        student, axes, targets(512.0), pairs_VG=PAIRS, weight_B=WEIGHT, temperature=0.1
    )
    loss.backward()
    assert axes.grad is not None
    assert student.grad is None
    assert not per_tile.requires_grad


def test_products_in_bf16_stay_near_and_the_rest_is_float32() -> None:
    student = tokens(V, seed=5, dtype=torch.float32).requires_grad_()
    axes = prototypes(6, dtype=torch.float32).requires_grad_()
    made = targets(0.01, dtype=torch.float32)
    settings = {"pairs_VG": PAIRS.float(), "weight_B": WEIGHT.float(), "temperature": 0.1}
    exact, _ = prototype_cross_entropy(student, axes, made, **settings)
    rough, _ = prototype_cross_entropy(student, axes, made, **settings, dtype=torch.bfloat16)
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=0.01)
    assert rough.item() != exact.item()
    gradient = torch.autograd.grad(rough, [student, axes])
    for ours, theirs in zip(gradient, torch.autograd.grad(exact, [student, axes]), strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 0.05 * theirs.norm()


class Largest(TorchDispatchMode):
    """Remembers the most numbers of any tensor that an operation makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, tuple | list) else [out]
        self.numel = max([self.numel, *(t.numel() for t in made if isinstance(t, torch.Tensor))])
        return out


def test_the_whole_matrix_never_exists() -> None:
    n_tiles, width, n_prototypes, memory_mb = 600, 4, 512, 0.1
    generator = torch.Generator().manual_seed(7)
    student = torch.randn(1, n_tiles, width, generator=generator).requires_grad_()
    axes = torch.randn(n_prototypes, width, generator=generator).requires_grad_()
    with Largest() as largest:
        scores = PrototypeScores(student, axes, temperature=0.1, memory_mb=memory_mb)
        made = PrototypeTargets(scores, sinkhorn_bias(scores))
        loss, _ = prototype_cross_entropy(
            student, axes, made,
            pairs_VG=torch.ones(1, 1), weight_B=torch.ones(n_tiles), temperature=0.1,
        )  # fmt: skip
        loss.backward()
    assert largest.numel <= memory_mb * 2**20 / 4 < n_tiles * n_prototypes / 10
    with Largest() as largest:
        PrototypeScores(student, axes, temperature=0.1, memory_mb=512.0)
    assert largest.numel == n_tiles * n_prototypes  # kept where there is room


def test_a_second_derivative_is_refused() -> None:
    student = tokens(V, seed=5).requires_grad_()
    loss, _ = prototype_cross_entropy(
        student, prototypes(6), targets(512.0), pairs_VG=PAIRS, weight_B=WEIGHT, temperature=0.1
    )
    (gradient,) = torch.autograd.grad(loss, student, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient.sum().backward()


def test_refusals_say_what_to_do() -> None:
    settings = {"pairs_VG": PAIRS, "weight_B": WEIGHT, "temperature": 0.1}
    with pytest.raises(ValueError, match="Take both from the same views"):
        prototype_cross_entropy(tokens(V, seed=5)[:, :3], prototypes(6), targets(1.0), **settings)
    with pytest.raises(ValueError, match="Take both from the same projection head"):
        prototype_cross_entropy(tokens(V, seed=5)[..., :3], prototypes(6), targets(1.0), **settings)
    with pytest.raises(ValueError, match="needs memory_mb > 0; got 0"):
        targets(0.0)
