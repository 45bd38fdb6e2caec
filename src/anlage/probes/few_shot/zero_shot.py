"""Zero-shot classes from text: cosine to class vectors, for tiles, slides and bags of tiles."""

# Shape suffixes: N rows, S slides, T prompts, L tiles in a bag, D embedding width, C classes.

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anlage.probes.checks import Rows, class_codes, embedding_tensor, labels_of, same_width
from anlage.probes.few_shot.prototypes import unit_rows
from anlage.probes.few_shot.tile_bags import largest_scores
from anlage.probes.precision import float32_products
from anlage.probes.prediction import Prediction

BLOCK_ROWS = 8192
TOP_J = (1, 5, 10, 50, 100)


def class_vectors_from_prompts(
    text_embedding_TD: Rows, class_of_prompt_T: Rows
) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """One vector a class: the mean of its L2-normalised prompt embeddings, normalised again.

    The prompts of a class are all its names in all templates; the mean is over all of them, in
    float64.

    Args:
        text_embedding_TD: (T, D) text embeddings of the prompts, not normalised.
        class_of_prompt_T: (T,) class of each.

    Returns:
        class_vector_CD: (C, D) float32 vectors of length 1.
        class_C: (C,) their classes, sorted.

    Raises:
        ValueError: If an array is unusable, there is one class only, or prompts cancel out.

    Source: Lu et al. 2024, CONCH, arXiv:2307.12914, Methods: 22 templates, several names a class.
    """
    who = "class_vectors_from_prompts"
    text = embedding_tensor(who, "text embeddings", text_embedding_TD)
    class_C, code_T = class_codes(who, class_of_prompt_T, n_rows=len(text))
    sum_CD = torch.zeros(len(class_C), text.shape[1], dtype=torch.float64, device=text.device)
    sum_CD.index_add_(0, code_T.to(text.device), unit_rows(text.double()))
    _refuse_no_direction(who, sum_CD, class_C, tiny=1e-6)
    return unit_rows(sum_CD).float().cpu().numpy(), class_C


def zero_shot(
    embedding_ND: Rows,
    class_vector_CD: Rows,
    class_C: Rows,
    *,
    logit_scale: float = 100.0,
    device: torch.device | str | None = None,
) -> Prediction:
    """Class whose vector has the largest cosine with each embedding.

    Float32 products, 8,192 rows at a time. An exact tie goes to the class that sorts first.

    Args:
        embedding_ND: (N, D) image embeddings in the space of the text (tiles or slides), not
            normalised.
        class_vector_CD: (C, D) class vectors, of any length.
        class_C: (C,) their classes, in any order; the prediction has them sorted.
        logit_scale: Cosines times this are the logits, > 0: exp of the trained ``logit_scale`` of
            the model. It changes scores, not labels. 100 is the ceiling in CLIP.
        device: Where to compute; by default where ``embedding_ND`` is.

    Returns:
        Labels, and softmax probabilities of the logits.

    Raises:
        ValueError: If an array is unusable, widths differ, a class is given twice, or a class
            vector is zero.

    Source: Radford et al. 2021, CLIP, arXiv:2103.00020; Lu et al. 2024, CONCH, arXiv:2307.12914.
    """
    who = "zero_shot"
    _refuse_settings(who, logit_scale, ())
    embedding = embedding_tensor(who, "embeddings", embedding_ND, device=device)
    unit_CD, sorted_C = _class_vectors(who, class_vector_CD, class_C, device=embedding.device)
    same_width(who, unit_CD, embedding)
    blocks = [_cosines(block, unit_CD) for block in torch.split(embedding, BLOCK_ROWS)]
    return _prediction(torch.cat(blocks), sorted_C, logit_scale)


def mi_zero_shot(
    bags: Iterable[Rows],
    class_vector_CD: Rows,
    class_C: Rows,
    *,
    top_j: Sequence[int] = TOP_J,
    logit_scale: float = 100.0,
    device: torch.device | str | None = None,
) -> dict[int, Prediction]:
    """Class of each slide by the mean of the j largest cosines of its tiles, for every j.

    Each class has its own tiles. Float32 products, float64 means, 8,192 tiles at a time.

    Args:
        bags: (L, D) tile embeddings of each slide; a list or any iterable, read once.
        class_vector_CD: (C, D) class vectors, of any length.
        class_C: (C,) their classes, in any order.
        top_j: Numbers of tiles that are averaged, each 1 or more; all tiles of a slide with fewer.
        logit_scale: As for ``zero_shot``; applied after the average.
        device: Where to compute; by default where ``class_vector_CD`` is.

    Returns:
        For each j, one row a slide.

    Raises:
        ValueError: As ``zero_shot``, and if there is no bag or an empty one.

    Source: Lu et al. 2023, MI-Zero, arXiv:2306.07831 (top-K pooling); j of CONCH's code.
    """
    who = "mi_zero_shot"
    _refuse_settings(who, logit_scale, top_j)
    unit_CD, sorted_C = _class_vectors(who, class_vector_CD, class_C, device=device)
    if not len(top_j):
        msg = f"{who}: top_j needs one number or more; got none. Leave it out for {TOP_J}."
        raise ValueError(msg)

    def score(tile_LD: Tensor) -> Tensor:
        return _cosines(tile_LD, unit_CD)

    best = list(largest_scores(who, bags, score, k=max(top_j), like_CD=unit_CD))
    return {
        j: _prediction(
            torch.stack([best_KC[:j].double().mean(dim=0) for best_KC in best]),
            sorted_C,
            logit_scale,
        )
        for j in top_j
    }


def _cosines(row_ND: Tensor, unit_CD: Tensor) -> Tensor:
    with float32_products(unit_CD.device):
        return unit_rows(row_ND) @ unit_CD.T


def _prediction(cosine_NC: Tensor, class_C: NDArray[Any], logit_scale: float) -> Prediction:
    return Prediction(
        label_N=class_C[cosine_NC.argmax(dim=1).cpu().numpy()],
        score_NC=torch.softmax(cosine_NC.double() * logit_scale, dim=1).cpu().numpy(),
        class_C=class_C,
    )


def _class_vectors(
    who: str, class_vector_CD: Rows, class_C: Rows, *, device: torch.device | str | None
) -> tuple[Tensor, NDArray[Any]]:
    vector_CD = embedding_tensor(who, "class vectors", class_vector_CD, device=device)
    label_C = labels_of(who, "classes", class_C, n_rows=len(vector_CD))
    sorted_C, place_C = np.unique(label_C, return_index=True)
    if len(sorted_C) < max(2, len(label_C)):
        msg = (
            f"{who}: needs two classes or more, each once; got {label_C.tolist()}. "
            "Average the prompts of a class with class_vectors_from_prompts."
        )
        raise ValueError(msg)
    _refuse_no_direction(who, vector_CD, label_C, tiny=0.0)
    return unit_rows(vector_CD[torch.from_numpy(place_C).to(vector_CD.device)]), sorted_C


def _refuse_no_direction(
    who: str, vector_CD: Tensor, class_C: NDArray[Any], *, tiny: float
) -> None:
    is_zero_C = (vector_CD.abs().amax(dim=1) <= tiny).cpu().numpy()
    if is_zero_C.any():
        msg = (
            f"{who}: a class vector needs a direction; got zero for {class_C[is_zero_C].tolist()}. "
            "Check the text embeddings of these classes."
        )
        raise ValueError(msg)


def _refuse_settings(who: str, logit_scale: float, top_j: Sequence[int]) -> None:
    if not 0 < logit_scale < np.inf or any(j < 1 for j in top_j):
        msg = (
            f"{who}: needs a logit_scale above 0 and top_j of 1 or more; got "
            f"logit_scale={logit_scale}, top_j={tuple(top_j)}. Take exp of the model's logit_scale."
        )
        raise ValueError(msg)
