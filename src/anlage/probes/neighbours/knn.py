"""The probe that lets nearest neighbours vote."""

# Shape suffixes: Q queries (test rows), M train rows, K neighbours, D embedding width, C classes.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch

from anlage.probes.checks import Rows, embedding_tensor, same_width, train_side
from anlage.probes.neighbours.nearest import check_search, refused_pairs, search_units
from anlage.probes.neighbours.unit_rows import deviation_row, mean_row, unit_rows
from anlage.probes.neighbours.votes import majority, weighted
from anlage.probes.prediction import Prediction

Vote = Literal["majority", "softmax"]


def knn_probe(
    train_MD: Rows,
    train_label_M: Rows,
    test_QD: Rows,
    *,
    k: int = 20,
    centre: bool = True,
    standardise: bool = False,
    vote: Vote = "majority",
    temperature: float = 0.07,
    exclude_own_row: bool = False,
    train_group_M: Rows | None = None,
    test_group_Q: Rows | None = None,
    device: torch.device | str | None = None,
) -> Prediction:
    """Class of each test row by a vote of its k nearest train rows, by cosine similarity.

    As given it is UNI's: both sides are centred with the train mean and L2-normalised, and k = 20
    (theirs also 1) neighbours have a vote each. ``centre=False, vote="softmax"`` is DINO's and
    DINOv2's: L2-normalised only, votes weigh exp(similarity / 0.07).

    Args:
        train_MD: (M, D) embeddings of the train side.
        train_label_M: (M,) their labels, strings or integers.
        test_QD: (Q, D) embeddings of the test side.
        k: Neighbours that vote, 1 to M; fewer where rows are excluded.
        centre: Subtract the train mean, summed in float64, from both sides.
        standardise: Divide each feature by its deviation on the train side as well, for features
            of unlike units (a constant one is only centred). Needs ``centre``.
        vote: ``majority`` for equal votes; a tie goes to the class whose neighbours are more
            similar in sum, then to the class that sorts first. ``softmax`` for weighted ones.
        temperature: Of the softmax, above 0.
        exclude_own_row: The test side is the train side, and no row votes for itself. The mean is
            of all rows.
        train_group_M: (M,) groups (patients) of the train side.
        test_group_Q: (Q,) groups of the test side; nobody votes for a row of their own group.
        device: Where to compute; by default where the train side is.

    Returns:
        Predicted labels and shares of the votes.

    Raises:
        ValueError: If an array is unusable, the train side has one class, k is more than the rows
            that may vote, or a setting is out of range.

    Source: Chen et al. 2024, UNI, arXiv:2308.15474, and its code (scikit-learn's classifier, which
    gives ties to the class that sorts first). Caron et al. 2021, DINO, arXiv:2104.14294, eval_knn;
    Oquab et al. 2024, DINOv2, arXiv:2304.07193, eval/knn: k = 10, 20, 100, 200.
    """
    predictions = knn_probes(
        train_MD,
        train_label_M,
        test_QD,
        ks=(k,),
        centre=centre,
        standardise=standardise,
        vote=vote,
        temperature=temperature,
        exclude_own_row=exclude_own_row,
        train_group_M=train_group_M,
        test_group_Q=test_group_Q,
        device=device,
    )
    return predictions[k]


def knn_probes(
    train_MD: Rows,
    train_label_M: Rows,
    test_QD: Rows,
    *,
    ks: Sequence[int],
    centre: bool = True,
    standardise: bool = False,
    vote: Vote = "majority",
    temperature: float = 0.07,
    exclude_own_row: bool = False,
    train_group_M: Rows | None = None,
    test_group_Q: Rows | None = None,
    device: torch.device | str | None = None,
) -> Mapping[int, Prediction]:
    """``knn_probe`` for several numbers of neighbours, from one search for the largest.

    Args:
        train_MD: As in ``knn_probe``, and so are all arguments but ``ks``.
        train_label_M: (M,) labels.
        test_QD: (Q, D) embeddings.
        ks: Numbers of neighbours, one or more.
        centre: Subtract the train mean.
        standardise: Divide by deviations.
        vote: Equal or weighted votes.
        temperature: Of weighted votes.
        exclude_own_row: Leave-one-out.
        train_group_M: (M,) groups.
        test_group_Q: (Q,) groups.
        device: Where to compute.

    Returns:
        The prediction of each k.

    Raises:
        ValueError: As ``knn_probe``, or if there is no k.
    """
    who = "knn_probe"
    train, class_C, code_M = train_side(who, train_MD, train_label_M, device=device)
    test = embedding_tensor(who, "test", test_QD, device=train.device)
    same_width(who, train, test)
    _refuse_settings(ks, centre=centre, standardise=standardise, vote=vote, temperature=temperature)
    pairs = refused_pairs(
        who,
        n_rows=(len(test), len(train)),
        exclude_own_row=exclude_own_row,
        groups=(test_group_Q, train_group_M),
    )
    for k in ks:
        check_search(who, test, train, k=k, codes=pairs)

    mean_D = mean_row(train) if centre else None
    scale_D = deviation_row(train, mean_D) if standardise and mean_D is not None else None
    index_QK, similarity_QK = search_units(
        unit_rows(test, mean_D=mean_D, scale_D=scale_D),
        unit_rows(train, mean_D=mean_D, scale_D=scale_D),
        k=max(ks),
        codes=pairs,
    )
    code_QK = code_M.cpu().numpy()[index_QK]
    n_classes = len(class_C)
    result = {}
    for k in ks:
        nearby = code_QK[:, :k], similarity_QK[:, :k]
        if vote == "majority":
            share_QC, winner_Q = majority(*nearby, n_classes=n_classes)
        else:
            share_QC, winner_Q = weighted(*nearby, n_classes=n_classes, temperature=temperature)
        result[k] = Prediction(label_N=class_C[winner_Q], score_NC=share_QC, class_C=class_C)
    return result


def _refuse_settings(
    ks: Sequence[int], *, centre: bool, standardise: bool, vote: str, temperature: float
) -> None:
    if not len(ks):
        msg = "knn_probe: ks needs a number of neighbours; got none. Give one, such as 20."
        raise ValueError(msg)
    if standardise and not centre:
        msg = "knn_probe: standardise needs centre; got centre=False. Leave centre out."
        raise ValueError(msg)
    if vote not in get_args(Vote):
        msg = f"knn_probe: vote needs to be one of {get_args(Vote)}; got {vote!r}. Choose one."
        raise ValueError(msg)
    if not 0 < temperature < float("inf"):
        msg = f"knn_probe: temperature needs to be above 0; got {temperature}. Theirs is 0.07."
        raise ValueError(msg)
