"""Tokens against prototypes in pieces: targets and cross-entropy without the whole score matrix.

Shape suffixes: V student views, G teacher views, B tiles (or masked patches, with one view), b
tiles of a piece, E bottleneck width, P prototypes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from anlage.distributed import ALONE, Ranks
from anlage.objectives.refusals import need_positive

BYTES = 4  # scores are float32
CPU_PIECE_MB = 80.0  # tensors of 32 MiB are new memory each time: filling one costs five passes


class PrototypeScores:
    """Scores of the teacher's tokens against prototypes, over a temperature, in pieces of tiles.

    The scores are kept if all of them fit the memory given, and computed again for each piece
    otherwise: with 131,072 prototypes and thousands of tokens they would take gigabytes.

    Args:
        bottleneck_GBE: (G, B, E) tokens of G views, as ``ProjectionHead.bottleneck_of`` gives
            them; B may be 0. No gradient flows to them.
        prototypes_PE: (P, E) prototypes, as ``ProjectionHead.prototypes`` gives them.
        temperature: Teacher temperature, > 0.
        memory_mb: Most memory for scores at a time, MiB; at least one tile is scored at a time.
        dtype: Dtype of the matrix product; float32 (or the tokens' own, if wider) if None. Scores
            are float32 at least.

    Raises:
        ValueError: If the shapes do not fit, or the temperature or memory is not positive.
    """

    def __init__(
        self,
        bottleneck_GBE: Tensor,
        prototypes_PE: Tensor,
        *,
        temperature: float,
        memory_mb: float = 512.0,
        dtype: torch.dtype | None = None,
    ) -> None:
        need_positive("PrototypeScores", "temperature", temperature)
        need_positive("PrototypeScores", "memory_mb", memory_mb)
        _check_widths("PrototypeScores", bottleneck_GBE, prototypes_PE)
        self.bottleneck_GBE = bottleneck_GBE.detach()
        self.prototypes_PE = prototypes_PE.detach()
        self.temperature, self.memory_mb = temperature, memory_mb
        self.axes_PE = _as_factor(self.prototypes_PE, dtype)
        self._kept_GBP: Tensor | None = None
        if tiles_a_piece(self, n_rows=len(bottleneck_GBE), is_whole=True) >= self.n_tiles > 0:
            self._kept_GBP = self._scored(self.bottleneck_GBE)

    @property
    def n_tiles(self) -> int:
        """Tiles (or masked patches) of each view, B."""
        return self.bottleneck_GBE.shape[1]

    @property
    def n_prototypes(self) -> int:
        """Prototypes, P."""
        return len(self.prototypes_PE)

    def of(self, tiles: slice) -> Tensor:
        """Scores of some tiles, (G, b, P); not to be changed."""
        if self._kept_GBP is not None:
            return self._kept_GBP[:, tiles]
        return self._scored(self.bottleneck_GBE[:, tiles])

    def pieces(self, *, n_rows: int | None = None) -> Iterator[slice]:
        """Consecutive tiles, as many at a time as fit the memory.

        Args:
            n_rows: Rows of P numbers that are held for a tile; the views' scores and two times
                as many beside them if None.
        """
        step = tiles_a_piece(self, n_rows=n_rows or 3 * len(self.bottleneck_GBE), is_whole=False)
        for start in range(0, self.n_tiles, step):
            yield slice(start, min(start + step, self.n_tiles))

    def shifted(self, tiles: slice, by_P: Tensor) -> Tensor:
        """Scores of some tiles plus one number a prototype, (G, b, P), the caller's own."""
        if self._kept_GBP is not None:
            return self._kept_GBP[:, tiles] + by_P
        return self.of(tiles).add_(by_P)

    def part(self, tiles: slice) -> PrototypeScores:
        """The scores of some tiles alone, as an object of their own."""
        part = object.__new__(PrototypeScores)
        part.__dict__.update(self.__dict__)
        part.bottleneck_GBE = self.bottleneck_GBE[:, tiles]
        part._kept_GBP = None if self._kept_GBP is None else self._kept_GBP[:, tiles]
        return part

    @torch.no_grad()
    def _scored(self, bottleneck_GBE: Tensor) -> Tensor:
        rows_RE = bottleneck_GBE.flatten(0, 1)
        score_RP = _product(rows_RE, self.axes_PE.T, over=self.temperature)
        return score_RP.view(*bottleneck_GBE.shape[:2], self.n_prototypes)


def tiles_a_piece(scores: PrototypeScores, *, n_rows: int, is_whole: bool) -> int:
    """Tiles whose score rows, ``n_rows`` each, fit the memory; at least one.

    Args:
        scores: The scores.
        n_rows: Rows of P numbers for each tile.
        is_whole: Whether they are made once and kept; else pieces are no larger on a CPU than it
            gives and takes back quickly.
    """
    memory_mb = scores.memory_mb
    if scores.prototypes_PE.device.type == "cpu" and not is_whole:
        memory_mb = min(memory_mb, CPU_PIECE_MB)
    row_bytes = BYTES * scores.n_prototypes
    return max(1, int(memory_mb * 2**20 / (row_bytes * max(n_rows, 1))))


class PrototypeTargets:
    """What the teacher says of each token: a softmax of its scores plus one bias a prototype.

    Args:
        scores: The teacher's scores.
        bias_P: (P,) ``sinkhorn_bias``, or ``center_bias``.

    Raises:
        ValueError: If there is not one bias a prototype.
    """

    def __init__(self, scores: PrototypeScores, bias_P: Tensor) -> None:
        if bias_P.shape != (scores.n_prototypes,):
            msg = (
                f"PrototypeTargets: needs one bias for each of {scores.n_prototypes} prototypes; "
                f"got shape {tuple(bias_P.shape)}. Keep one centre for each head."
            )
            raise ValueError(msg)
        self.scores, self.bias_P = scores, bias_P

    def of(self, tiles: slice) -> Tensor:
        """Targets of some tiles, (G, b, P) float32, rows sum to 1."""
        return self.scores.shifted(tiles, self.bias_P).softmax(dim=-1)

    def part(self, tiles: slice) -> PrototypeTargets:
        """The targets of some tiles alone."""
        return PrototypeTargets(self.scores.part(tiles), self.bias_P)

    @torch.no_grad()
    def statistics(self, ranks: Ranks = ALONE) -> tuple[Tensor, Tensor]:
        """Signs of collapse when they leave their usual range.

        Args:
            ranks: Processes over whose tokens they are taken; each has as many.

        Returns:
            entropy: Mean entropy of the targets, scalar, nats, from 0 (one-hot) to ``log P``.
            usage: Perplexity of the mean target over P, scalar, from 1 / P (every token has the
                same prototype) to 1 (all are used alike); zero where there is no token.
        """
        total_P = torch.zeros_like(self.bias_P)
        entropy = self.bias_P.new_zeros(())
        for tiles in self.scores.pieces():
            target_RP = self.of(tiles).flatten(0, 1)
            total_P += target_RP.sum(dim=0)
            entropy += torch.special.entr(target_RP).sum()
        n_rows = len(self.scores.bottleneck_GBE) * self.scores.n_tiles
        if n_rows == 0:
            return entropy, entropy
        mean_P = ranks.mean(total_P / n_rows)
        spread = torch.special.entr(mean_P).sum().exp() / len(total_P)
        return ranks.mean(entropy / n_rows), spread


def prototype_cross_entropy(
    student_VBE: Tensor,
    prototypes_PE: Tensor,
    targets: PrototypeTargets,
    *,
    pairs_VG: Tensor,
    weight_B: Tensor,
    temperature: float,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Weighted cross-entropy of student views with the teacher views that are paired with them.

    Scores are computed for a piece of tiles at a time, and their gradients at once with them, so
    that neither pass ever holds the whole score matrix and the backward pass computes no score
    again. Runs in float32 whatever autocast says, the matrix products in ``dtype``.

        L = -sum_b weight_b sum_{v, g} pairs_vg sum_p target_gbp log softmax(<s_vb, w> / t)_p

    Args:
        student_VBE: (V, B, E) student bottlenecks; B may be 0.
        prototypes_PE: (P, E) student prototypes.
        targets: The teacher's, of G views and the same B tiles.
        pairs_VG: (V, G) weight of each pair of views, in the scores' dtype.
        weight_B: (B,) weight of each tile; no gradient flows to it.
        temperature: Student temperature t, > 0.
        dtype: Dtype of the matrix products; float32 (or the student's own, if wider) if None.

    Returns:
        loss: Scalar, through which gradients flow to student and prototypes (once: not twice).
        per_tile_B: (B,) detached, before ``weight_b``.

    Raises:
        ValueError: If the shapes do not fit, or the temperature is not positive.
    """
    need_positive("prototype_cross_entropy", "student_temperature", temperature)
    _check_widths("prototype_cross_entropy", student_VBE, prototypes_PE)
    scores = targets.scores
    wanted = (student_VBE.shape[1], len(prototypes_PE), (len(student_VBE), len(pairs_VG[0])))
    given = (scores.n_tiles, scores.n_prototypes, tuple(pairs_VG.shape))
    if wanted != given or len(scores.bottleneck_GBE) != pairs_VG.shape[1]:
        msg = (
            "prototype_cross_entropy: needs students and targets of the same tiles and as many "
            f"prototypes, and one weight a pair of views; got student {tuple(student_VBE.shape)} "
            f"with {len(prototypes_PE)} prototypes, targets "
            f"{tuple(scores.bottleneck_GBE.shape)} with {scores.n_prototypes}, pairs "
            f"{tuple(pairs_VG.shape)}. Take both from the same views."
        )
        raise ValueError(msg)
    settings = (targets, pairs_VG, weight_B.detach(), temperature, dtype)
    found: tuple[Tensor, Tensor] = _CrossEntropy.apply(student_VBE, prototypes_PE, settings)  # type: ignore[no-untyped-call]
    return found


_Settings = tuple[PrototypeTargets, Tensor, Tensor, float, torch.dtype | None]


class _CrossEntropy(torch.autograd.Function):
    """The loss, its gradients computed with it piece by piece."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context, on which needs_input_grad is set
        student_VBE: Tensor,
        prototypes_PE: Tensor,
        settings: _Settings,
    ) -> tuple[Tensor, Tensor]:
        targets, pairs_VG, weight_B, temperature, dtype = settings
        n_views = len(student_VBE)
        wants_student, wants_prototypes = ctx.needs_input_grad[:2]
        wide = torch.promote_types(student_VBE.dtype, torch.float32)
        per_tile_B = student_VBE.new_zeros(student_VBE.shape[1], dtype=wide)
        grad_VBE = torch.zeros_like(student_VBE, dtype=wide) if wants_student else None
        grad_PE = torch.zeros_like(prototypes_PE, dtype=wide) if wants_prototypes else None
        with torch.autocast(student_VBE.device.type, enabled=False):
            axes_PE = _as_factor(prototypes_PE, dtype)
            rows_held = 2 * len(pairs_VG[0]) + 2 * n_views  # targets and scores, in two forms each
            for tiles in targets.scores.pieces(n_rows=rows_held):
                piece_RE = student_VBE[:, tiles].flatten(0, 1)
                score_VbP = _product(piece_RE, axes_PE.T, over=temperature)
                score_VbP = score_VbP.view(n_views, -1, len(prototypes_PE))
                scale_b = weight_B[tiles] / temperature
                per_tile_B[tiles] = _pieces_loss(score_VbP, targets.of(tiles), pairs_VG, scale_b)
                change_RP = score_VbP.flatten(0, 1)  # now the loss's gradient
                if grad_VBE is not None:
                    change_RE = _product(change_RP, axes_PE)
                    grad_VBE[:, tiles] = change_RE.view(n_views, -1, change_RE.shape[1])
                if grad_PE is not None:
                    _add_product(grad_PE, change_RP.T, piece_RE, dtype)
        ctx.save_for_backward(grad_VBE, grad_PE)
        ctx.dtypes = student_VBE.dtype, prototypes_PE.dtype
        ctx.mark_non_differentiable(per_tile_B)
        return (weight_B * per_tile_B).sum(), per_tile_B

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        found = (
            None if grad is None else grad.mul_(upstream).to(dtype)  # no second time may follow
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return (*found, None)


def _pieces_loss(
    score_VbP: Tensor, target_GbP: Tensor, pairs_VG: Tensor, scale_b: Tensor
) -> Tensor:
    """Loss of each tile of a piece, (b,); leaves ``scale_b`` times its gradient in the scores."""
    wanted_VbP, factor = target_GbP, pairs_VG[:, :, None]  # of one pair, the target itself
    if pairs_VG.numel() > 1:
        wanted_VbP = (pairs_VG @ target_GbP.flatten(1)).view_as(score_VbP)
        factor = torch.ones_like(factor[:1, :1])
    mass_V1 = pairs_VG.sum(dim=1)[:, None]
    agreement_Vb = factor[..., 0] * torch.linalg.vecdot(wanted_VbP, score_VbP)
    largest_Vb1 = score_VbP.amax(dim=-1, keepdim=True)
    total_Vb1 = score_VbP.sub_(largest_Vb1).exp_().sum(dim=-1, keepdim=True)
    scale_b1 = scale_b[:, None]
    score_VbP.mul_(mass_V1[..., None] * scale_b1 / total_Vb1)
    score_VbP.addcmul_(wanted_VbP, factor * scale_b1, value=-1)
    lse_Vb = (largest_Vb1 + total_Vb1.log())[..., 0]
    loss_b: Tensor = (mass_V1 * lse_Vb - agreement_Vb).sum(dim=0)
    return loss_b


def _as_factor(prototypes_PE: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Prototypes in the dtype of products with them: float32 (or their own, if wider) if None."""
    return prototypes_PE.to(dtype or torch.promote_types(prototypes_PE.dtype, torch.float32))


def _product(left: Tensor, factor: Tensor, *, over: float = 1.0) -> Tensor:
    """A matrix product in the dtype of its second factor, divided; float32 or wider."""
    wide = torch.promote_types(left.dtype, torch.float32)
    with torch.autocast(left.device.type, enabled=False):
        if over != 1:
            left = left.to(wide) / over  # here, where there are few numbers
        product: Tensor = (left.to(factor.dtype) @ factor).to(wide)
        return product


def _add_product(sum_PE: Tensor, left: Tensor, right: Tensor, dtype: torch.dtype | None) -> None:
    if dtype is None or dtype == sum_PE.dtype:
        sum_PE.addmm_(left, right.to(sum_PE.dtype))
    else:
        sum_PE += _product(left, right.to(dtype))


def _check_widths(who: str, tokens_VBE: Tensor, prototypes_PE: Tensor) -> None:
    if (
        tokens_VBE.ndim != 3
        or prototypes_PE.ndim != 2
        or tokens_VBE.shape[2] != prototypes_PE.shape[1]
    ):
        msg = (
            f"{who}: needs (views, tiles, E) tokens and (P, E) prototypes; got "
            f"{tuple(tokens_VBE.shape)} and {tuple(prototypes_PE.shape)}. "
            "Take both from the same projection head."
        )
        raise ValueError(msg)
