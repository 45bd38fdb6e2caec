"""Toy slides for fine-tuning: bags of noise in which single tiles carry what a table says."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from some_bags import ATTRIBUTES

from anlage.bags.store import Bag, bag_place, write_bag

WIDTH = 8
MADE = replace(ATTRIBUTES, tile_px=256, stride_px=256, slide_mpp=0.5)


@dataclass(frozen=True, slots=True)
class MarkedSlides:
    """Bags and their table.

    Attributes:
        bags: Folder of the bags.
        labels: The CSV.
    """

    bags: Path
    labels: Path


def marked_bag(slide_id: str, marks: Sequence[float], *, n_tiles: int, seed: int) -> Bag:
    """A bag of noise whose one tile holds the marks, each in a column of its own, times 6."""
    generator = np.random.default_rng(seed)
    features = generator.standard_normal((n_tiles, WIDTH))
    tile = int(generator.integers(n_tiles))
    features[tile, : len(marks)] = 6 * np.asarray(marks)
    edge = int(np.ceil(np.sqrt(n_tiles)))
    corners = np.array([(256 * (k % edge), 256 * (k // edge)) for k in range(n_tiles)])
    return Bag(slide_id, features.astype(np.float16), corners, MADE)


def write_marked(
    folder: Path,
    rows: Sequence[Mapping[str, object]],
    marks: Callable[[Mapping[str, object]], Sequence[float]],
    *,
    seed: int = 0,
) -> MarkedSlides:
    """Write a bag for each row of a table, and the table.

    Args:
        folder: Where.
        rows: With ``slide_id``; the same keys in each.
        marks: What the marked tile of a row's bag holds.
        seed: Of the noise.
    """
    (folder / "bags").mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(rows):
        slide_id = str(row["slide_id"])
        bag = marked_bag(slide_id, marks(row), n_tiles=6 + number % 5, seed=seed + number)
        write_bag(bag_place(folder / "bags", slide_id), bag)
    labels = folder / "labels.csv"
    with labels.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return MarkedSlides(folder / "bags", labels)


def two_classes(n_patients: int, *, slides_each: int = 1, seed: int = 0) -> list[dict[str, object]]:
    """Rows of patients of two classes in turn, in an order that names do not tell."""
    order = np.random.default_rng(seed).permutation(n_patients)
    return [
        {
            "slide_id": f"slide {patient:03d} {slide}",
            "patient_id": f"patient {patient:03d}",
            "label": ("wild", "mutated")[int(order[patient]) % 2],
        }
        for patient in range(n_patients)
        for slide in range(slides_each)
    ]


def mark_of_class(row: Mapping[str, object]) -> list[float]:
    return [1.0, 1.0 if row["label"] == "mutated" else -1.0]
