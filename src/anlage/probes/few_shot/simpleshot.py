"""SimpleShot: accuracy of nearest prototypes from K labelled cases a class, in many episodes."""

# Shape suffixes: N test rows, M train rows, D embedding width, C classes, K numbers of shots,
# E episodes, Q quantiles.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anlage.probes.checks import Rows, embedding_tensor, labels_of, same_width, train_side
from anlage.probes.few_shot.episodes import play, sides_about_zero
from anlage.probes.precision import float32_products
from anlage.probes.splits.few_shot import (
    Supports,
    few_shot_patients,
    few_shot_rows,
    refuse_shared_patients,
)

SHOTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FewShotScores:
    """How well each episode did.

    Attributes:
        shots_K: (K,) rows (or patients) of each class that an episode saw.
        recall_KEC: (K, E, C) share of the test rows of each class that were found; NaN for a class
            without test rows.
        hit_share_KN: (K, N) share of the episodes in which each test row was right. Its mean over
            rows is the mean accuracy, so it can be bootstrapped over patients.
        class_C: (C,) labels of the train side, sorted.
        n_test_C: (C,) test rows of each class.
    """

    shots_K: NDArray[np.int64]
    recall_KEC: NDArray[np.float64]
    hit_share_KN: NDArray[np.float64]
    class_C: NDArray[Any]
    n_test_C: NDArray[np.int64]

    @property
    def balanced_accuracy(self) -> NDArray[np.float64]:
        """(K, E) mean recall of the classes that have test rows, 0 to 1."""
        mean: NDArray[np.float64] = self.recall_KEC[:, :, self.n_test_C > 0].mean(axis=2)
        return mean

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """(K, E) share of the test rows that were right, 0 to 1."""
        hits_KEC = np.nan_to_num(self.recall_KEC) * self.n_test_C
        share: NDArray[np.float64] = hits_KEC.sum(axis=2) / self.n_test_C.sum()
        return share

    @property
    def mean(self) -> NDArray[np.float64]:
        """(K,) mean over the episodes of balanced accuracy."""
        mean: NDArray[np.float64] = self.balanced_accuracy.mean(axis=1)
        return mean

    @property
    def std(self) -> NDArray[np.float64]:
        """(K,) standard deviation over the episodes (n - 1) of balanced accuracy; NaN for one.

        It says how much the choice of labelled cases matters. It is no standard error, and says
        nothing of other patients on the test side.
        """
        n_episodes = self.recall_KEC.shape[1]
        if n_episodes < 2:
            return np.full(len(self.shots_K), np.nan)
        return np.asarray(self.balanced_accuracy.std(axis=1, ddof=1))

    def quantiles(self, probability_Q: Sequence[float] = (0.25, 0.5, 0.75)) -> NDArray[np.float64]:
        """(K, Q) quantiles over the episodes of balanced accuracy."""
        return np.asarray(np.quantile(self.balanced_accuracy, probability_Q, axis=1).T)


def simpleshot(
    train_MD: Rows,
    train_label_M: Rows,
    test_ND: Rows,
    test_label_N: Rows,
    *,
    shots: Sequence[int] = SHOTS,
    n_episodes: int = 1000,
    seed: int = 0,
    nested: bool = False,
    train_patient_M: Rows | None = None,
    test_patient_N: Rows | None = None,
    by_patient: bool = False,
    rows_per_patient: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> FewShotScores:
    """Few-shot classification by nearest prototypes, for each number of shots in many episodes.

    Each episode draws K train rows of each class without replacement. Support and test side are
    centred with the mean of this support and L2-normalised, prototypes are means of the
    normalised support (not normalised again), and each test row gets the class of the nearest by
    Euclidean distance. All episodes of a block are one matrix product; there is no loop over
    episodes. Beside a copy of both sides and the draws there are some blocks of 32 MiB
    (256 on CUDA), or of one episode and 8,192 test rows where that is more.

    Args:
        train_MD: (M, D) embeddings to draw supports from.
        train_label_M: (M,) their labels.
        test_ND: (N, D) embeddings of the test side.
        test_label_N: (N,) their labels, all of classes of the train side.
        shots: Numbers of cases of each class, each 1 or more.
        n_episodes: E, draws for each number of shots.
        seed: Of the draws; results do not depend on the size of blocks but for rounding.
        nested: The support of an episode at K shots is contained in that at more.
        train_patient_M: (M,) patients of the train side.
        test_patient_N: (N,) patients of the test side; with both given, none may be on both.
        by_patient: K counts patients of each class, not rows, drawn with all of their rows of the
            class.
        rows_per_patient: Only so many rows of each patient, drawn too.
        device: Where to compute; by default where ``train_MD`` is.
        dtype: Of all arithmetic, sums included: float32 (never TF32, whatever autocast says) or
            float64.

    Raises:
        ValueError: If an array is unusable, a test label is unknown, a class has fewer rows (or
            patients) than the most shots, or a patient is on two sides.

    Source: Wang et al. 2019, SimpleShot, arXiv:1911.04623; Chen et al. 2024, UNI,
    arXiv:2308.15474, Methods: K = 1 to 256, 1,000 episodes. Theirs resolves exact ties by the
    order in which classes were drawn.
    """
    who = "simpleshot"
    _refuse_settings(
        shots, dtype, train_patient_M, by_patient=by_patient, rows_per_patient=rows_per_patient
    )
    train, class_C, code_M = train_side(who, train_MD, train_label_M, device=device, dtype=dtype)
    test = embedding_tensor(who, "test", test_ND, device=train.device, dtype=dtype)
    same_width(who, train, test)
    code_N = _test_codes(class_C, test_label_N, n_rows=len(test))
    patient_M = _train_patients(train_patient_M, len(train), test_patient_N, len(test))
    supports = _supports(
        class_C[code_M.cpu().numpy()],
        patient_M if by_patient else None,
        shots=shots,
        rows_per_patient=rows_per_patient,
        settings={"n_episodes": n_episodes, "seed": seed, "nested": nested, "who": who},
    )
    return _scores(train, test, code_N, class_C=class_C, supports=supports)


def _scores(
    train: Tensor,
    test: Tensor,
    code_N: NDArray[np.int64],
    *,
    class_C: NDArray[Any],
    supports: list[Supports],
) -> FewShotScores:
    order_N = np.argsort(code_N, kind="stable")
    n_test_C = np.bincount(code_N, minlength=len(class_C))
    sides = sides_about_zero(
        train, test[torch.from_numpy(order_N).to(test.device)], n_test_C=n_test_C.tolist()
    )
    n_episodes = len(supports[0].unit_ECK)
    recall_KEC = np.full((len(supports), n_episodes, len(class_C)), np.nan)
    hit_share_KN = np.empty((len(supports), len(test)))
    for place, support in enumerate(supports):
        with float32_products(test.device):
            hits_EC, hits_N = play(sides, support)
        np.divide(hits_EC, n_test_C, out=recall_KEC[place], where=n_test_C > 0)
        hit_share_KN[place, order_N] = hits_N / n_episodes
    return FewShotScores(
        shots_K=np.array([support.shots for support in supports]),
        recall_KEC=recall_KEC,
        hit_share_KN=hit_share_KN,
        class_C=class_C,
        n_test_C=n_test_C,
    )


def _test_codes(class_C: NDArray[Any], test_label_N: Rows, *, n_rows: int) -> NDArray[np.int64]:
    label_N = labels_of("simpleshot", "test labels", test_label_N, n_rows=n_rows)
    place_of = {label: place for place, label in enumerate(class_C.tolist())}
    values = label_N.tolist()
    unknown = sorted({str(label) for label in values if label not in place_of})
    if unknown:
        msg = (
            f"simpleshot: test labels need to be classes of the train side; got {unknown}, train "
            f"has {class_C.tolist()}. Drop these test rows, or add such cases to the train side."
        )
        raise ValueError(msg)
    return np.array([place_of[label] for label in values], dtype=np.int64)


def _train_patients(
    train_patient_M: Rows | None, n_train: int, test_patient_N: Rows | None, n_test: int
) -> NDArray[Any] | None:
    if train_patient_M is None:
        return None
    patient_M = labels_of("simpleshot", "train patients", train_patient_M, n_rows=n_train)
    if test_patient_N is not None:
        labels_of("simpleshot", "test patients", test_patient_N, n_rows=n_test)
    refuse_shared_patients("simpleshot", patient_M, test_patient_N)
    return patient_M


def _refuse_settings(
    shots: Sequence[int],
    dtype: torch.dtype,
    train_patient_M: Rows | None,
    *,
    by_patient: bool,
    rows_per_patient: int | None,
) -> None:
    msg = ""
    if not len(shots) or len(set(shots)) != len(shots):
        msg = (
            f"simpleshot: shots needs different numbers, at least one; got {tuple(shots)}. "
            f"Leave it out for {SHOTS}."
        )
    elif by_patient and train_patient_M is None:
        msg = (
            "simpleshot: by_patient needs the patient of each train row; got none. "
            "Give train_patient_M."
        )
    elif rows_per_patient is not None and not by_patient:
        msg = (
            f"simpleshot: rows_per_patient needs by_patient=True; got {rows_per_patient} without "
            "it. Set by_patient, or leave rows_per_patient out."
        )
    elif dtype not in {torch.float32, torch.float64}:
        msg = (
            f"simpleshot: dtype needs to be torch.float32 or torch.float64; got {dtype}. "
            "Embeddings of other types are converted."
        )
    if msg:
        raise ValueError(msg)


def _supports(
    label_M: NDArray[Any],
    patient_M: NDArray[Any] | None,
    *,
    shots: Sequence[int],
    rows_per_patient: int | None,
    settings: dict[str, Any],
) -> list[Supports]:
    """Draws for each number of shots, the largest first: it is the one that may be refused."""

    def draw(k: int) -> Supports:
        if patient_M is None:
            return few_shot_rows(label_M, shots=k, **settings)
        return few_shot_patients(
            label_M, patient_M, shots=k, rows_per_patient=rows_per_patient, **settings
        )

    drawn = {k: draw(k) for k in sorted(shots, reverse=True)}
    return [drawn[k] for k in shots]
