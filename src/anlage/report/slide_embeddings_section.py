"""The slide embeddings: which slides lie next to each other.

Shape suffixes: N slides, P width of a slide embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anlage.report.contents import Contents
from anlage.slides.catalogue import Catalogue

MOST_COMPARED = 5000  # slides: all pairs of more take long
MOST_SHOWN = 100


@dataclass(frozen=True, kw_only=True)
class SlideNeighbour:
    """A slide and the one most like it.

    Attributes:
        slide_id: The slide.
        organ: Its organ; empty if nobody said.
        n_tiles: Tiles of its bag.
        nearest: The most similar slide of another patient; empty if there is none.
        nearest_organ: Its organ.
        similarity: Cosine of both embeddings less the mean of all.
    """

    slide_id: str
    organ: str
    n_tiles: int
    nearest: str
    nearest_organ: str
    similarity: float

    @property
    def is_same_organ(self) -> bool:
        """Whether both are known to be of one organ."""
        return bool(self.organ) and self.organ == self.nearest_organ


@dataclass(frozen=True, kw_only=True)
class SlideEmbeddingsSection:
    """The table of slide embeddings.

    Attributes:
        summary: What there is, in a sentence.
        agreement: How often neighbours are of one organ, beside chance; empty where none is known.
        rows: At most 100, in the order of the table.
        n_slides: All of them.
    """

    summary: str
    agreement: str
    rows: tuple[SlideNeighbour, ...]
    n_slides: int


def slide_embeddings_section(contents: Contents) -> SlideEmbeddingsSection | None:
    """The table and its nearest neighbours; None without one, or with no row."""
    table = contents.over_slides.table
    if table is None or not len(table.rows):
        return None
    names = table.rows["slide_id"].to_pylist()
    embedding_NP = np.array(table.rows["embedding"].to_pylist(), dtype=np.float64)
    patients = table.rows["patient_id"].to_pylist()
    group_N = np.array([p or f"slide {n}" for p, n in zip(patients, names, strict=True)])
    organs = _organs(names, contents.catalogue)
    n_tiles = table.rows["n_tiles"].to_pylist()
    nearest_N, cosine_N = _nearest(embedding_NP, group_N)
    rows = [
        SlideNeighbour(
            slide_id=name,
            organ=organs[row],
            n_tiles=n_tiles[row],
            nearest=names[nearest_N[row]] if nearest_N[row] >= 0 else "",
            nearest_organ=organs[nearest_N[row]] if nearest_N[row] >= 0 else "",
            similarity=float(cosine_N[row]),
        )
        for row, name in enumerate(names)
    ]
    pooling = {"cls": "the slide token", "mean": "the mean of the tiles in context"}
    made = str(table.about.get("pooling", ""))
    counted = "1 slide" if len(names) == 1 else f"{len(names):,} slides"
    summary = f"{counted}, {embedding_NP.shape[1]:,} numbers each: {pooling.get(made, made)}."
    if (nearest_N >= 0).any():
        summary += (
            " Beside each slide the most similar one of another patient, by the cosine of "
            "embeddings less their mean."
        )
    return SlideEmbeddingsSection(
        summary=summary,
        agreement=_agreement(rows, np.array(organs), group_N),
        rows=tuple(rows[:MOST_SHOWN]),
        n_slides=len(names),
    )


def _organs(names: list[str], catalogue: Catalogue | None) -> list[str]:
    if catalogue is None:
        return [""] * len(names)
    known = [catalogue.row(name).tissue if name in catalogue else None for name in names]
    return [(organ or "").replace("_", " ") for organ in known]


def _nearest(
    embedding_NP: NDArray[np.float64], group_N: NDArray[np.str_]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The most similar row of another group, -1 where there is none, and the cosine."""
    n_rows = len(embedding_NP)
    none_N, nan_N = np.full(n_rows, -1), np.full(n_rows, np.nan)
    if n_rows > MOST_COMPARED or len(np.unique(group_N)) < 2:
        return none_N, nan_N
    centred_NP = embedding_NP - embedding_NP.mean(axis=0)
    length_N1 = np.linalg.norm(centred_NP, axis=1, keepdims=True)
    unit_NP = centred_NP / np.maximum(length_N1, np.finfo(np.float64).tiny)
    cosine_NN = unit_NP @ unit_NP.T
    cosine_NN[group_N[:, None] == group_N[None, :]] = -np.inf
    nearest_N = cosine_NN.argmax(axis=1)
    return nearest_N, cosine_NN[np.arange(n_rows), nearest_N]


def _agreement(
    rows: list[SlideNeighbour], organ_N: NDArray[np.str_], group_N: NDArray[np.str_]
) -> str:
    """How many neighbours are of one organ, and how many a random other slide would be."""
    known = [row for row in rows if row.organ and row.nearest_organ]
    if not known:
        return ""
    n_same = sum(row.is_same_organ for row in known)
    has_organ_N = organ_N != ""
    shares = []
    for organ, group in zip(organ_N[has_organ_N], group_N[has_organ_N], strict=True):
        is_other_N = has_organ_N & (group_N != group)
        shares.append(float((organ_N[is_other_N] == organ).mean()) if is_other_N.any() else 0.0)
    chance = len(known) * float(np.mean(shares))
    return (
        f"{n_same} of {len(known)} nearest slides are of the same organ; slides drawn at random "
        f"would be {chance:.1f}."
    )
