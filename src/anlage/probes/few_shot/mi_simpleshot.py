"""MI-SimpleShot: the class of a slide by its tiles nearest to prototypes from labelled regions."""

# Shape suffixes: S slides, L tiles in a bag, D embedding width, C classes.

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from anlage.probes.checks import Rows
from anlage.probes.few_shot.prototypes import Prototypes
from anlage.probes.few_shot.tile_bags import largest_scores
from anlage.probes.prediction import Prediction


def mi_simpleshot(
    class_prototypes: Prototypes,
    bags: Iterable[Rows],
    *,
    top_k: int = 5,
    reading: Literal["code", "paper"] = "code",
) -> Prediction:
    """Class whose prototype is, on average, nearest to the slide's ``top_k`` nearest tiles.

    Each class has its own nearest tiles. Tiles are centred with the mean of the labelled regions
    (not of the slide) and L2-normalised, as these were. Float32 throughout; 8,192 tiles at a time,
    on the device of the prototypes.

    Args:
        class_prototypes: Of tile-level (region) data of the same classes.
        bags: (L, D) tile embeddings of each slide; a list or any iterable, read once.
        top_k: Nearest tiles averaged, 1 or more; published with 5 and 50. A slide with fewer tiles
            is averaged over all of them.
        reading: ``code`` averages squared Euclidean distances, as faiss's IndexFlatL2 returns
            them; ``paper`` averages the distances themselves.

    Returns:
        One row a slide. The score is the softmax over classes of the negative average: ours, and
        not calibrated.

    Raises:
        ValueError: If a setting is out of range, there is no bag, or one is empty, not finite or
            of another width.

    Source: Chen et al. 2024, UNI, arXiv:2308.15474, Methods, and its protonet code. There, a slide
    with fewer tiles than ``top_k`` has no defined class.
    """
    if top_k < 1 or reading not in {"code", "paper"}:
        msg = (
            "mi_simpleshot: needs top_k of 1 or more and reading 'code' or 'paper'; got "
            f"top_k={top_k}, reading={reading!r}. Published: top_k 5 and 50."
        )
        raise ValueError(msg)

    def nearness(tile_LD: Tensor) -> Tensor:
        square_LC = class_prototypes.squared_distances(tile_LD)
        return -square_LC if reading == "code" else -square_LC.sqrt()

    best = largest_scores(
        "mi_simpleshot", bags, nearness, k=top_k, like_CD=class_prototypes.vector_CD
    )
    score_SC = torch.stack([best_KC.double().mean(dim=0) for best_KC in best])
    return Prediction(
        label_N=class_prototypes.class_C[score_SC.argmax(dim=1).cpu().numpy()],
        score_NC=torch.softmax(score_SC, dim=1).cpu().numpy(),
        class_C=class_prototypes.class_C,
    )
