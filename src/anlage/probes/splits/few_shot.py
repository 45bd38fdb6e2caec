"""Few labelled cases, drawn many times: supports of rows or of patients, and label fractions."""

# Shape suffixes: N rows (tiles), P patients, C classes, E episodes, K shots, S rows of the supports
# of some episodes, B bags (one a class and episode), U units (rows, or patients in a class).

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anlage.probes.checks import Rows, class_codes, labels_of
from anlage.probes.splits.split import group_name

TABLE_VALUES = 2**24
NO_UNIT = -1


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Supports:
    """The labelled rows that each episode may see, class by class.

    Attributes:
        shots: Rows, or patients, of each class.
        class_C: (C,) labels, sorted.
        unit_ECK: (E, C, K) int64 units drawn for each episode and class, in the order drawn; -1
            where a patient had fewer rows than were asked of each.
        row_N: Rows of all units, one unit after another, int64.
        first_U: (U + 1,) int64; the rows of unit u are ``row_N[first_U[u]:first_U[u + 1]]``.
    """

    shots: int
    class_C: NDArray[Any]
    unit_ECK: NDArray[np.int64]
    row_N: NDArray[np.int64]
    first_U: NDArray[np.int64]

    def rows(self, first: int, last: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of the episodes from ``first`` to before ``last``, and where each bag starts.

        Returns:
            row_S: (S,) int64 rows: those of the first episode's first class, of its second, ...
            start_B: (B + 1,) int64, B = (last - first) * C: the rows of bag b are
                ``row_S[start_B[b]:start_B[b + 1]]``.
        """
        unit_BK = self.unit_ECK[first:last].reshape(-1, self.unit_ECK.shape[2])
        is_drawn_BK = unit_BK >= 0
        unit = unit_BK[is_drawn_BK]
        if len(self.first_U) > len(self.row_N):  # every unit is one row
            n_rows_B = is_drawn_BK.sum(axis=1)
            return self.row_N[unit], np.concatenate([[0], np.cumsum(n_rows_B)])
        size = self.first_U[unit + 1] - self.first_U[unit]
        end = np.cumsum(size)
        place_S = np.arange(end[-1]) + np.repeat(self.first_U[unit] - (end - size), size)
        n_rows_BK = np.zeros_like(unit_BK)
        n_rows_BK[is_drawn_BK] = size
        return self.row_N[place_S], np.concatenate([[0], np.cumsum(n_rows_BK.sum(axis=1))])


def few_shot_rows(
    label_N: Rows,
    *,
    shots: int,
    n_episodes: int = 1000,
    seed: int = 0,
    nested: bool = False,
    who: str = "few_shot_rows",
) -> Supports:
    """K rows of each class, drawn without replacement, anew for each episode.

    A partial Fisher-Yates shuffle of all episodes at once; the table of positions takes 64 MiB at
    most (or one episode's, if that is larger).

    Args:
        label_N: (N,) labels of the train side.
        shots: K, rows of each class.
        n_episodes: E, draws.
        seed: Of the draws. The same seed gives the same episodes.
        nested: With the same seed, the rows of an episode at K shots are the first K of those at
            any larger number. Otherwise, numbers of shots are drawn independently.
        who: Caller's name, for messages.

    Raises:
        ValueError: If labels are unusable, or a class has fewer than K rows.
    """
    label = labels_of(who, "train labels", label_N)
    class_C, code_N = class_codes(who, label, n_rows=len(label))
    order_N = np.argsort(code_N.numpy(), kind="stable")
    n_units_C = np.bincount(code_N.numpy())
    _refuse_shots(who, shots, n_episodes)
    _refuse_few(who, shots, class_C, n_units_C, what="rows")
    return Supports(
        shots=shots,
        class_C=class_C,
        unit_ECK=_units(n_units_C, shots, n_episodes=n_episodes, seed=seed, nested=nested),
        row_N=order_N,
        first_U=np.arange(len(order_N) + 1),
    )


def few_shot_patients(
    label_N: Rows,
    patient_N: Rows,
    *,
    shots: int,
    rows_per_patient: int | None = None,
    n_episodes: int = 1000,
    seed: int = 0,
    nested: bool = False,
    test_patient: Rows | None = None,
    who: str = "few_shot_patients",
) -> Supports:
    """K patients of each class, and all of their rows of that class or a few of each.

    A patient with rows of several classes may be drawn for each of them.

    Args:
        label_N: (N,) labels of the train side.
        patient_N: (N,) its patients.
        shots: K, patients of each class.
        rows_per_patient: Rows of each, drawn without replacement (all where there are fewer); None
            for all.
        n_episodes: E, draws.
        seed: Of the draws.
        nested: With the same seed, the patients of an episode at K shots, and their rows, are the
            first K of those at any larger number.
        test_patient: Patients of the test side, to be refused here.
        who: Caller's name, for messages.

    Raises:
        ValueError: If lists are unusable, a class has fewer than K patients, or a patient is on
            both sides.
    """
    label = labels_of(who, "train labels", label_N)
    patient = labels_of(who, "patients", patient_N, n_rows=len(label))
    refuse_shared_patients(who, patient, test_patient)
    class_C, code = class_codes(who, label, n_rows=len(label))
    patient_U, code_of_patient_N = np.unique(patient, return_inverse=True)
    pair_N = code.numpy() * len(patient_U) + code_of_patient_N
    order_N = np.argsort(pair_N, kind="stable")
    pair_U, size_U = np.unique(pair_N, return_counts=True)
    n_units_C = np.bincount(pair_U // len(patient_U), minlength=len(class_C))
    _refuse_shots(who, shots, n_episodes)
    _refuse_few(who, shots, class_C, n_units_C, what="patients")
    if rows_per_patient is not None:
        _refuse_rows_per_patient(who, rows_per_patient)
    unit_ECK = _units(n_units_C, shots, n_episodes=n_episodes, seed=seed, nested=nested)
    first_U = np.concatenate([[0], np.cumsum(size_U)])
    if rows_per_patient is not None:
        entropy = [seed, 0 if nested else shots]
        place = _rows_of_patients(entropy, size_U[unit_ECK], rows_per_patient)
        unit = np.where(place >= 0, first_U[unit_ECK][..., None] + place, NO_UNIT)
        unit_ECK, first_U = (unit.reshape(*unit_ECK.shape[:2], -1), np.arange(len(label) + 1))
    return Supports(shots=shots, class_C=class_C, unit_ECK=unit_ECK, row_N=order_N, first_U=first_U)


def label_fraction(
    label_N: Rows,
    patient_N: Rows,
    *,
    fraction: float,
    seed: int = 0,
    test_patient: Rows | None = None,
) -> NDArray[np.int64]:
    """Rows of a share of the patients of each class, whole patients only.

    A patient counts for the one of its classes that the fewest patients have, so that rare classes
    last. Of each class at least one patient is kept. With the same seed a smaller fraction is
    contained in a larger one.

    Args:
        label_N: (N,) labels of the train side.
        patient_N: (N,) its patients.
        fraction: Share of patients, above 0 to 1.
        seed: Of the order in which patients are taken.
        test_patient: Patients of the test side, to be refused here.

    Returns:
        Rows, rising int64; all of them at 1.

    Raises:
        ValueError: If lists are unusable, the fraction is out of range, a patient is on both sides,
            or no patient of a class is left.
    """
    who = "label_fraction"
    if not 0 < fraction <= 1:
        msg = f"{who}: fraction needs to be above 0 and at most 1; got {fraction}. 0.05 is 5 %."
        raise ValueError(msg)
    label = labels_of(who, "train labels", label_N)
    patient = labels_of(who, "patients", patient_N, n_rows=len(label))
    refuse_shared_patients(who, patient, test_patient)
    class_C, code = class_codes(who, label, n_rows=len(label))
    patient_P, place_N = np.unique(patient, return_inverse=True)
    has_class_PC = np.zeros((len(patient_P), len(class_C)), dtype=bool)
    has_class_PC[place_N, code.numpy()] = True
    n_patients_C = has_class_PC.sum(axis=0)
    stratum_P = np.where(has_class_PC, n_patients_C, len(patient_P) + 1).argmin(axis=1)
    is_kept_P = np.zeros(len(patient_P), dtype=bool)
    for stratum in np.unique(stratum_P):
        members = np.random.default_rng([seed, int(stratum)]).permutation(
            np.flatnonzero(stratum_P == stratum)
        )
        is_kept_P[members[: max(1, round(fraction * len(members)))]] = True
    lost = class_C[~has_class_PC[is_kept_P].any(axis=0)]
    if len(lost):
        msg = (
            f"{who}: needs a patient of each class; got none of {lost.tolist()} at a fraction of "
            f"{fraction}. Raise the fraction, or take another seed."
        )
        raise ValueError(msg)
    return np.flatnonzero(is_kept_P[place_N])


def refuse_shared_patients(
    who: str, train_patient: NDArray[Any], test_patient: Rows | None
) -> None:
    """Refuse patients that are on the train and on the test side; None: nothing to compare with.

    Raises:
        ValueError: If there are such patients.
    """
    if test_patient is None:
        return
    sides = train_patient, labels_of(who, "test patients", test_patient)
    train, test = ({group_name(name) for name in side.tolist()} for side in sides)
    shared = sorted(train & test)
    if shared:
        msg = (
            f"{who}: a patient needs to be on one side only; got {len(shared)} on both, such as "
            f"{', '.join(shared[:3])}. Split by patient first."
        )
        raise ValueError(msg)


def _refuse_shots(who: str, shots: int, n_episodes: int) -> None:
    if shots < 1 or n_episodes < 1:
        msg = (
            f"{who}: needs one shot and one episode or more; got shots={shots}, "
            f"n_episodes={n_episodes}. Ask for at least 1 of each."
        )
        raise ValueError(msg)


def _refuse_rows_per_patient(who: str, rows_per_patient: int) -> None:
    if rows_per_patient < 1:
        msg = (
            f"{who}: rows_per_patient needs to be 1 or more; got {rows_per_patient}. "
            "Leave it out for all rows."
        )
        raise ValueError(msg)


def _refuse_few(
    who: str, shots: int, class_C: NDArray[Any], n_units_C: NDArray[np.int64], *, what: str
) -> None:
    short = [
        f"{n} of {name!r}"
        for name, n in zip(class_C.tolist(), n_units_C.tolist(), strict=True)
        if n < shots
    ]
    if short:
        msg = (
            f"{who}: {shots} shots need {shots} {what} of each class; got only "
            f"{', '.join(short)}. Ask for at most {n_units_C.min()} shots, or leave out the class."
        )
        raise ValueError(msg)


def _units(
    n_units_C: NDArray[np.int64], shots: int, *, n_episodes: int, seed: int, nested: bool
) -> NDArray[np.int64]:
    """(E, C, K) units; those of class c follow those of the classes before it."""
    first_C = np.concatenate([[0], np.cumsum(n_units_C)[:-1]])
    unit_ECK = np.empty((n_episodes, len(n_units_C), shots), dtype=np.int64)
    for place, n_units in enumerate(n_units_C.tolist()):
        entropy: Sequence[int] = [seed, place] if nested else [seed, shots, place]
        drawn_EK = _without_replacement(np.random.default_rng(entropy), n_units, shots, n_episodes)
        unit_ECK[:, place] = first_C[place] + drawn_EK
    return unit_ECK


def _without_replacement(
    rng: np.random.Generator, n_values: int, n_draws: int, n_episodes: int
) -> NDArray[np.int64]:
    """(E, K) of 0 to n - 1, no value twice in a row; step by step: fewer draws are a prefix."""
    pick_KE = np.stack([rng.integers(step, n_values, n_episodes) for step in range(n_draws)])
    drawn_EK = np.empty((n_episodes, n_draws), dtype=np.int64)
    n_block = min(n_episodes, max(1, TABLE_VALUES // n_values))
    table_BN = np.tile(np.arange(n_values, dtype=np.min_scalar_type(n_values)), (n_block, 1))
    for first in range(0, n_episodes, n_block):
        pick_KB = pick_KE[:, first : first + n_block]
        row_B = np.arange(pick_KB.shape[1])
        for step, pick_B in enumerate(pick_KB):
            drawn_EK[first + row_B, step] = table_BN[row_B, pick_B]
            table_BN[row_B, pick_B] = table_BN[row_B, step]
        if first + n_block < n_episodes:  # undo, for the next block
            for pick_B in pick_KB:
                table_BN[row_B, pick_B] = pick_B
    return drawn_EK


def _rows_of_patients(
    entropy: Sequence[int], size_ECK: NDArray[np.int64], n_draws: int
) -> NDArray[np.int64]:
    """(E, C, K, n) rows of each patient, patient by patient: fewer shots are a prefix."""
    parts = [
        _some_of_each(np.random.default_rng([*entropy, number, 1]), size_ECK[:, :, number], n_draws)
        for number in range(size_ECK.shape[2])
    ]
    return np.stack(parts, axis=2)


def _some_of_each(
    rng: np.random.Generator, size: NDArray[np.int64], n_draws: int
) -> NDArray[np.int64]:
    """Up to n different numbers below each size, -1 for the missing: Floyd's way, all at once."""
    below = np.maximum(size - n_draws, 0)
    chosen = np.full((*size.shape, n_draws), NO_UNIT, dtype=np.int64)
    for step in range(n_draws):
        pick = rng.integers(0, below + step + 1)
        is_taken = (chosen[..., :step] == pick[..., None]).any(axis=-1)
        chosen[..., step] = np.where(is_taken, below + step, pick)
    chosen[np.broadcast_to(np.arange(n_draws), chosen.shape) >= size[..., None]] = NO_UNIT
    return chosen
