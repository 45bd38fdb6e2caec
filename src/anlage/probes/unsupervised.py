"""What embeddings tell without labels: how many directions they use, and how evenly."""

# Shape suffixes: N tiles, D embedding width, B tiles of a block, C tiles of another block.

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from anlage.probes.checks import Rows, embedding_tensor

EPSILON = 1e-7
BLOCK_ROWS = 4096
WELL_CONDITIONED = 1e-8
VARIES = 1e-6


def rankme(embedding_ND: Rows, *, device: torch.device | str | None = None) -> float:
    """Effective rank of a set of embeddings: how many directions they spread over.

        RankMe = exp( -sum_k p_k log p_k ),   p_k = s_k / sum_j s_j + 1e-7

    with s the singular values of the embeddings as they are, not centred. They are the roots of the
    eigenvalues of the smaller Gram matrix, summed in float64 over blocks of 4,096 rows. Squaring
    loses the small ones: where the smallest eigenvalue is below 1e-8 of the largest, they come from
    the triangular factor of a QR of the rows instead, with the accuracy of a plain SVD. Memory:
    a block and a square of side min(N, D), in float64.

    Args:
        embedding_ND: (N, D) embeddings. Use N well above D: the rank is at most min(N, D).
        device: Where to compute; by default where a tensor is, and the CPU for an array.

    Returns:
        1 (collapsed to one direction) to min(N, D), up to the 1e-7; 0 if all embeddings are zero,
        which span no direction at all (the formula has no value there). Within 1e-6 of its value by
        a float64 SVD, relatively.

    Raises:
        ValueError: If the array is unusable.

    Source: Garrido et al. 2023, RankMe, arXiv:2210.02885, equation 1.
    """
    embedding = _rows("rankme", embedding_ND, device)
    narrow = embedding if embedding.shape[0] >= embedding.shape[1] else embedding.T
    singular = _singular_values(narrow)
    if not bool(singular.any()):
        return 0.0
    share = singular / singular.sum() + EPSILON
    return float((-(share * share.log()).sum()).exp())


def off_diagonal_correlation(
    embedding_ND: Rows, *, device: torch.device | str | None = None
) -> float:
    """ODCorr: mean absolute correlation of two different features, over the tiles.

    Low where features say different things. A constant feature has no correlation and is left out
    (one whose deviation is below 1e-6 of its largest value, where float32 ends). Float64 sums over
    blocks of 4,096 rows; memory: a block and a (D, D) square.

    Returns:
        0 to 1; NaN where fewer than two features vary.

    Raises:
        ValueError: If the array is unusable.

    Source: the name is kaiko's, arXiv:2404.15217, which gives no formula; this one is ours.
    """
    embedding = _rows("off_diagonal_correlation", embedding_ND, device)
    mean_D = _mean(embedding)
    gram_DD = _sum_of_grams(block - mean_D for block in _blocks(embedding))
    low_D, high_D = embedding.aminmax(dim=0)
    largest_D = torch.maximum(-low_D, high_D).double()
    deviation_D = (gram_DD.diagonal() / len(embedding)).sqrt()
    varies_D = deviation_D > VARIES * largest_D
    n_varying = int(varies_D.sum())
    if n_varying < 2:
        return math.nan
    scale_D = gram_DD.diagonal()[varies_D].sqrt()
    correlation_DD = gram_DD[varies_D][:, varies_D] / scale_D / scale_D[:, None]
    total = correlation_DD.abs().sum() - correlation_DD.diagonal().abs().sum()
    return float(total / (n_varying * (n_varying - 1)))


def feature_std(embedding_ND: Rows, *, device: torch.device | str | None = None) -> float:
    """Mean over features of the standard deviation of L2-normalised embeddings.

    Falls to 0 as all tiles collapse to one point and is 1 / sqrt(D) where they spread evenly over
    the sphere. An embedding of zeros stays at zero. Float64 sums over blocks of 4,096 rows.

    Returns:
        0 to 1 / sqrt(D).

    Raises:
        ValueError: If the array is unusable.

    Source: Chen & He 2021, SimSiam, arXiv:2011.10566, section 4.1 (the std of z / |z|).
    """
    embedding = _rows("feature_std", embedding_ND, device)
    mean_D = _sum_of(_unit(block).sum(dim=0) for block in _blocks(embedding)) / len(embedding)
    squares = ((_unit(block) - mean_D).square().sum(dim=0) for block in _blocks(embedding))
    return float((_sum_of(squares) / len(embedding)).sqrt().mean())


def uniformity(
    embedding_ND: Rows, *, sharpness: float = 2.0, device: torch.device | str | None = None
) -> float:
    """Log of the mean Gaussian potential of all pairs of L2-normalised embeddings; lower is better.

        log mean_{i < j} exp( -sharpness * |x_i - x_j|^2 )

    All N (N - 1) / 2 pairs, 4,096 x 4,096 at a time, in float64: the time grows with N^2 D, the
    memory (0.3 GB) does not. Take 10,000 tiles or so of a large set.

    Args:
        embedding_ND: (N, D) embeddings, N >= 2.
        sharpness: The source's t, > 0.
        device: Where to compute; by default where a tensor is, and the CPU for an array.

    Returns:
        -4 sharpness to 0 (all tiles at one point).

    Raises:
        ValueError: If the array is unusable, has one row or one of zeros, or sharpness is not > 0.

    Source: Wang & Isola 2020, arXiv:2005.10242, section 4.1.2, t = 2.
    """
    embedding = _rows("uniformity", embedding_ND, device)
    _refuse_directionless("uniformity", embedding)
    n_rows = len(embedding)
    if n_rows < 2 or not (sharpness > 0 and math.isfinite(sharpness)):
        msg = (
            f"uniformity: needs two embeddings or more and sharpness > 0; got {n_rows} and "
            f"{sharpness}. Take more tiles; the source uses 2."
        )
        raise ValueError(msg)
    total = torch.zeros((), dtype=torch.float64, device=embedding.device)
    for first, one in enumerate(_blocks(embedding)):
        one_BD = _unit(one)
        for second, other in enumerate(_blocks(embedding[first * BLOCK_ROWS :])):
            cosine_BC = one_BD @ (one_BD if second == 0 else _unit(other)).T
            potential_BC = cosine_BC.sub_(1).clamp_(max=0).mul_(2 * sharpness).exp_()
            pairs = potential_BC.triu_(1) if second == 0 else potential_BC
            total += pairs.sum()
    return float((total / (n_rows * (n_rows - 1) / 2)).log())


def alignment(one_ND: Rows, other_ND: Rows, *, device: torch.device | str | None = None) -> float:
    """Mean squared distance of L2-normalised embeddings of two views of each tile; lower is better.

    Args:
        one_ND: (N, D) embeddings of one view of each tile.
        other_ND: (N, D) embeddings of another view, in the same order.
        device: Where to compute; by default where the first tensor is, and the CPU for an array.

    Returns:
        0 (the views cannot be told apart) to 4.

    Raises:
        ValueError: If an array is unusable, shapes differ, or a row is zeros.

    Source: Wang & Isola 2020, arXiv:2005.10242, section 4.1.1, alpha = 2.
    """
    one = _rows("alignment", one_ND, device)
    other = _rows("alignment", other_ND, one.device)
    if one.shape != other.shape:
        msg = (
            f"alignment: needs two views of the same tiles; got shapes {tuple(one.shape)} and "
            f"{tuple(other.shape)}. Embed each tile twice, in one order."
        )
        raise ValueError(msg)
    for rows in (one, other):
        _refuse_directionless("alignment", rows)
    gaps = (
        (_unit(block) - _unit(twin)).square().sum()
        for block, twin in zip(_blocks(one), _blocks(other), strict=True)
    )
    return float(_sum_of(gaps) / len(one))


def _rows(who: str, embedding_ND: Rows, device: torch.device | str | None) -> Tensor:
    """Checked rows: float32 as they are where they hold no more than that, else float64."""
    if isinstance(embedding_ND, Tensor):
        is_short = embedding_ND.is_floating_point() and embedding_ND.dtype != torch.float64
    else:
        is_short = np.asarray(embedding_ND).dtype in {np.dtype("f2"), np.dtype("f4")}
    dtype = torch.float32 if is_short else torch.float64
    return embedding_tensor(who, "embedding", embedding_ND, device=device, dtype=dtype)


def _blocks(embedding_ND: Tensor) -> Iterator[Tensor]:
    return (block.double() for block in torch.split(embedding_ND, BLOCK_ROWS))


def _unit(block_BD: Tensor) -> Tensor:
    return torch.nn.functional.normalize(block_BD, dim=1, eps=1e-300)


def _sum_of(terms: Iterator[Tensor]) -> Tensor:
    total = next(terms).clone()
    for term in terms:
        total += term
    return total


def _sum_of_grams(blocks: Iterator[Tensor]) -> Tensor:
    return _sum_of(block.T @ block for block in blocks)


def _mean(embedding_ND: Tensor) -> Tensor:
    return _sum_of(block.sum(dim=0) for block in _blocks(embedding_ND)) / len(embedding_ND)


def _singular_values(tall_ND: Tensor) -> Tensor:
    square = torch.linalg.eigvalsh(_sum_of_grams(_blocks(tall_ND)))
    if bool(square[0] > WELL_CONDITIONED * square[-1]):
        roots: Tensor = square.sqrt()
        return roots
    factor = torch.zeros((0, tall_ND.shape[1]), dtype=torch.float64, device=tall_ND.device)
    for block in _blocks(tall_ND):
        factor = torch.linalg.qr(torch.cat([factor, block]), mode="r").R
    singular: Tensor = torch.linalg.svdvals(factor)
    return singular


def _refuse_directionless(who: str, embedding_ND: Tensor) -> None:
    blocks = torch.split(embedding_ND, BLOCK_ROWS)
    zero = torch.cat([(block == 0).all(dim=1) for block in blocks]).nonzero()[:, 0]
    if len(zero):
        msg = (
            f"{who}: an embedding needs a direction; got zeros in {len(zero)} rows, the first is "
            f"row {int(zero[0])}. Drop these rows, or look why the encoder gives zeros."
        )
        raise ValueError(msg)
