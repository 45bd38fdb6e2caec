"""What embeddings tell without labels."""

# Shape suffixes: N tiles, D embedding width.

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from anlage.probes.checks import finite_embeddings

EPSILON = 1e-7


def rankme(embedding_ND: ArrayLike) -> float:
    """Effective rank of a set of embeddings: how many directions they spread over.

        RankMe = exp( -sum_k p_k log p_k ),   p_k = s_k / sum_j s_j + 1e-7

    with s the singular values of the embeddings as they are, not centred, in float64.

    Args:
        embedding_ND: (N, D) embeddings. Use N well above D: the rank is at most min(N, D).

    Returns:
        1 (collapsed to one direction) to min(N, D), up to the 1e-7; 0 if all embeddings are zero,
        which span no direction at all (the formula has no value there).

    Raises:
        ValueError: If the array is unusable.

    Source: Garrido et al. 2023, RankMe, arXiv:2210.02885, equation 1.
    """
    embedding = finite_embeddings("rankme", "embedding", embedding_ND, dtype=np.float64)
    singular = np.linalg.svd(embedding, compute_uv=False)
    if singular.sum() == 0:
        return 0.0
    share = singular / singular.sum() + EPSILON
    return float(np.exp(-(share * np.log(share)).sum()))
