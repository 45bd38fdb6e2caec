"""One division of rows into sides, and the check that no group (patient) is on two of them."""

# Shape suffixes: N rows (tiles).

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anlage.probes.checks import labels_of

SIDES = {
    **{"train": "train", "training": "train", "test": "test", "testing": "test"},
    **{"val": "val", "valid": "val", "validation": "val"},
}


def _no_rows() -> NDArray[np.int64]:
    return np.empty(0, dtype=np.int64)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Split:
    """One division into a train, a test and perhaps a validation side.

    Attributes:
        name: The group left out, the fold, or ``test``.
        train: Rows of the train side, rising int64.
        test: Rows of the test side, rising int64.
        validation: Rows on which settings are chosen, rising int64; empty where there are none.

    Raises:
        ValueError: If the train or the test side is empty, or a row is on two sides.
    """

    name: str
    train: NDArray[np.int64]
    test: NDArray[np.int64]
    validation: NDArray[np.int64] = field(default_factory=_no_rows)

    def __post_init__(self) -> None:
        if not (len(self.train) and len(self.test)):
            msg = (
                f"Split: {self.name} needs rows on the train and on the test side; got "
                f"{len(self.train)} and {len(self.test)}. Check the column the sides come from."
            )
            raise ValueError(msg)
        row = np.concatenate([self.train, self.validation, self.test])
        if row.min() < 0 or np.bincount(row).max() > 1:
            msg = (
                f"Split: {self.name} needs each row once, on one side, counted from 0; got row "
                f"{_first_bad(row)} otherwise. Make the sides from one column of the rows."
            )
            raise ValueError(msg)

    @property
    def sides(self) -> dict[str, NDArray[np.int64]]:
        """Rows of the sides by name: ``train``, ``val`` where there is one, ``test``."""
        named = {"train": self.train, "val": self.validation, "test": self.test}
        return {name: rows for name, rows in named.items() if len(rows)}

    def refuse_cut_groups(self, group_N: ArrayLike) -> None:
        """Refuse a group that has rows on two sides; rows on no side do not count.

        Args:
            group_N: (N,) group of each row that the split was made from.

        Raises:
            ValueError: If there is one, or there are fewer groups than the split has rows.
        """
        group = labels_of("Split", "groups", group_N)
        row = np.concatenate(list(self.sides.values()))
        if row.max() >= len(group):
            msg = (
                f"Split: {self.name} needs a group for each row it names; got {len(group)} groups "
                f"and row {row.max()}. Give the groups of all rows, not of one side."
            )
            raise ValueError(msg)
        side = np.repeat(list(self.sides), [len(rows) for rows in self.sides.values()])
        refuse_cut_groups(f"Split: {self.name}", group[row], side)


def group_name(value: object) -> str:
    """Name of a group: no spaces around it, and 7.0, which a column with gaps makes of 7, is 7."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def groups_on_two_sides(group_N: ArrayLike, side_N: ArrayLike) -> list[str]:
    """Names of the groups whose tiles carry more than one side (fold); empty is as it should be."""
    group = map(group_name, np.asarray(group_N).tolist())
    pairs = set(zip(group, np.asarray(side_N).tolist(), strict=True))
    seen: dict[str, int] = {}
    for name, _ in pairs:
        seen[name] = seen.get(name, 0) + 1
    return sorted(name for name, count in seen.items() if count > 1)


def refuse_cut_groups(who: str, group_N: ArrayLike, side_N: ArrayLike) -> None:
    """Refuse groups whose rows carry more than one side (fold).

    Raises:
        ValueError: If there is one, or there is not one group a row.
    """
    side = np.asarray(side_N)
    group = labels_of(who, "groups", group_N, n_rows=len(side))
    cut = groups_on_two_sides(group, side)
    if cut:
        msg = (
            f"{who}: a group needs to be on one side only; got {len(cut)} on two, such as "
            f"{', '.join(cut[:3])}. Move all tiles of a group to the same fold or side."
        )
        raise ValueError(msg)


def refuse_two_spellings(who: str, group_N: NDArray[Any]) -> None:
    """Refuse groups that are one by name, but two by type or by the spaces around it.

    Raises:
        ValueError: If there are such.
    """
    named: dict[str, Any] = {}
    for group in set(group_N.tolist()):
        other = named.setdefault(group_name(group), group)
        if other is not group:
            msg = (
                f"{who}: a group needs one spelling; got "
                f"{' and '.join(sorted(map(repr, (other, group))))}. "
                "Strip spaces and make all names text."
            )
            raise ValueError(msg)


def _first_bad(row: NDArray[np.int64]) -> int:
    if row.min() < 0:
        return int(row.min())
    return int(np.bincount(row).argmax())
