"""The linear probe of kaiko-eva: AdamW on mini-batches, several runs at once."""

# Shape suffixes: M train rows, V validation rows, R runs, C classes, D embedding width.

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anlage.probes.checks import Rows, train_side
from anlage.probes.linear.descent import AdamWDescent, diverged
from anlage.probes.linear.settings import refuse_numbers
from anlage.probes.linear.side_by_side import advance_side_by_side
from anlage.probes.linear.stack import HeadStack, shuffled_epochs
from anlage.probes.linear.validation import BestHeads, ValidationSide, validation_side
from anlage.probes.precision import float32_products
from anlage.probes.prediction import LinearHead

WHO = "linear_probe_eva"
LOW_EPOCHS = 5  # torch's ConstantLR: a third of the rate for its first five steps, here epochs
PATIENCE_SHARE = 5


def linear_probe_eva(
    train_MD: Rows,
    label_M: Rows,
    *,
    validation: tuple[Rows, Rows] | None = None,
    n_runs: int = 5,
    seed: int = 0,
    reading: Literal["paper", "code"] = "paper",
    loss: Literal["softmax", "sigmoid"] = "softmax",
    n_steps: int = 12_500,
    batch: int = 256,
    lr: float = 3e-4,
    weight_decay: float = 0.01,
    patience: int | None = None,
    device: torch.device | str | None = None,
) -> tuple[LinearHead, ...]:
    """One linear layer on frozen embeddings by eva's protocol, for several seeds at once.

    Weights start as ``torch.nn.Linear``'s; every epoch goes through all rows in a new order, and
    its last, short batch is kept. Embeddings are used as they are: nothing is centred or scaled.

    With a validation side, heads are scored by balanced accuracy after every epoch and after the
    last step; the first best one is returned, and a run stops after ``patience`` epochs without a
    better one. Without it, the head after the last step is returned.

    All float32, without TF32; AdamW's state too. On a CPU every run has one thread and torch's
    number of threads (``torch.get_num_threads``) is how many runs go on at once; the same run
    trained alone gives the same bits. On CUDA all runs share every kernel.
    Beside the arrays given, memory is n_runs * (16 * M + 4 * batch * D + 16 * C * D) bytes.

    Args:
        train_MD: (M, D) embeddings of the train side; tensors stay on their device.
        label_M: (M,) their labels, strings or integers.
        validation: (V, D) embeddings and (V,) labels that choose the epoch. Not the test side.
        n_runs: Runs, from seeds ``seed``, ``seed + 1`` and so on.
        seed: Of the first run: of its first weights and its order of rows.
        reading: The learning rate: "paper" keeps ``lr`` all along, as eva's documents say;
            "code" is what version 0.4.5 does, a third of it for the first five epochs.
        loss: Cross-entropy of a softmax, or "sigmoid": one logit and binary cross-entropy, as
            eva's configurations of MHIST and PatchCamelyon have it; two classes only.
        n_steps: Batches that each run sees.
        batch: Rows of a batch; all of them if there are fewer.
        lr: Learning rate of AdamW.
        weight_decay: Of weights and bias, decoupled.
        patience: Epochs; by default a fifth of those that ``n_steps`` makes, rounded up.
        device: Where to train; by default where the embeddings are.

    Returns:
        One head a run, in the order of seeds; ``note`` names seed and step.

    Raises:
        ValueError: If an array or a setting is unusable, or the training diverges.

    Source: kaiko-eva 0.4.5, configs/vision/pathology/offline/classification and
    core/models/modules/head.py (Gatopoulos et al. 2024, eva). Orders of rows are ours.
    """
    refuse_numbers(WHO, whole={"n_runs": n_runs, "n_steps": n_steps, "batch": batch})
    refuse_numbers(WHO, positive={"lr": lr}, not_negative={"weight_decay": weight_decay})
    if patience is not None:
        refuse_numbers(WHO, whole={"patience": patience})
    train, class_C, code_M = train_side(WHO, train_MD, label_M, device=device)
    _refuse_words(reading=reading, loss=loss, class_C=class_C)
    side = None
    if validation is not None:
        side = validation_side(WHO, validation, train_MD=train, class_C=class_C)
    protocol = _Protocol(
        n_outputs=1 if loss == "sigmoid" else len(class_C),
        n_steps=n_steps,
        batch=batch,
        lr=lr,
        n_low_epochs=LOW_EPOCHS if reading == "code" else 0,
        weight_decay=weight_decay,
        patience=patience or eva_patience(len(train), batch=batch, n_steps=n_steps),
    )
    seeds = range(seed, seed + n_runs)
    is_cpu = train.device.type == "cpu"
    stacked = [[one] for one in seeds] if is_cpu else [list(seeds)]
    runs = [_Runs(train, code_M, side=side, seeds=some, protocol=protocol) for some in stacked]
    with float32_products(train.device):
        if is_cpu:
            n_threads = min(n_runs, torch.get_num_threads())
            advance_side_by_side([run.advance for run in runs], n_threads=n_threads)
        else:
            while runs[0].advance():
                pass
    return tuple(head for run in runs for head in run.heads(class_C))


def eva_patience(n_rows: int, *, batch: int = 256, n_steps: int = 12_500) -> int:
    """Epochs without a better score after which eva stops: a fifth of all, rounded up.

    Args:
        n_rows: Rows of the train side.
        batch: Rows of a batch.
        n_steps: Batches in all.

    Source: kaiko-eva 0.4.5: BACH 1,250, BreakHis 500, MHIST 278, BRACS 167, UniToPatho 100,
    Gleason 42, CRC 7, PatchCamelyon 3.
    """
    return math.ceil(n_steps / math.ceil(n_rows / batch) / PATIENCE_SHARE)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Protocol:
    """What every run of a call shares."""

    n_outputs: int
    n_steps: int
    batch: int
    lr: float
    n_low_epochs: int
    weight_decay: float
    patience: int


class _Runs:
    """Runs that share their kernels, and how far they are."""

    def __init__(
        self,
        train_MD: Tensor,
        code_M: Tensor,
        *,
        side: ValidationSide | None,
        seeds: Sequence[int],
        protocol: _Protocol,
    ) -> None:
        self._protocol, self._code_M, self._side, self._seeds = (protocol, code_M, side, seeds)
        self._stack = HeadStack(train_MD, n_outputs=protocol.n_outputs, seeds=seeds)
        self._descent = AdamWDescent(self._stack.parameter_P, weight_decay=protocol.weight_decay)
        self._epochs = shuffled_epochs(len(train_MD), seeds=seeds, device=train_MD.device)
        self._best = BestHeads(self._stack, patience=protocol.patience) if side else None
        self._n_steps = self._n_epochs = 0

    def advance(self) -> bool:
        """Train for one epoch, or to the last step; say whether there is more to do."""
        protocol, stack = self._protocol, self._stack
        row_RM = next(self._epochs)
        code_RM = self._code_M[row_RM]
        is_low = self._n_epochs < protocol.n_low_epochs
        lr = protocol.lr / 3 if is_low else protocol.lr
        n_left = protocol.n_steps - self._n_steps
        batches = zip(
            torch.split(row_RM, protocol.batch, dim=1)[:n_left],
            torch.split(code_RM, protocol.batch, dim=1)[:n_left],
            strict=True,
        )
        for row_RB, code_RB in batches:
            stack.set_gradient(row_RB, code_RB)
            self._descent.step(stack.gradient_P, lr=lr)
            self._n_steps += 1
        self._n_epochs += 1
        if self._side is not None and self._best is not None:
            score_R = self._side.balanced_accuracy(stack)
            self._best.consider(stack, score_R, step=self._n_steps)
            if self._best.are_all_stopped:
                return False
        return self._n_steps < protocol.n_steps

    def heads(self, class_C: NDArray[Any]) -> list[LinearHead]:
        """The trained heads; a sigmoid becomes a softmax whose first logit is zero."""
        weights, biases = self._stack.weight_RCD, self._stack.bias_RC
        steps = np.full(len(self._seeds), self._n_steps)
        if self._best is not None:
            weights, biases = self._best.weight_RCD, self._best.bias_RC
            steps = self._best.step_R
        if not (weights.isfinite().all() and biases.isfinite().all()):
            raise ValueError(diverged(WHO, n_steps=self._protocol.n_steps, lr=self._protocol.lr))
        if self._stack.is_sigmoid:
            weights = torch.cat([torch.zeros_like(weights), weights], dim=1)
            biases = torch.cat([torch.zeros_like(biases), biases], dim=1)
        return [
            LinearHead(
                weight_CD=weight_CD.clone(),
                bias_C=bias_C.clone(),
                mean_D=torch.zeros_like(weight_CD[0]),
                scale_D=torch.ones_like(weight_CD[0]),
                class_C=class_C,
                note=f"seed {seed}, step {step} of {self._protocol.n_steps}",
            )
            for seed, weight_CD, bias_C, step in zip(
                self._seeds, weights, biases, steps, strict=True
            )
        ]


def _refuse_words(*, reading: str, loss: str, class_C: NDArray[Any]) -> None:
    for name, value, known in (
        ("reading", reading, ("paper", "code")),
        ("loss", loss, ("softmax", "sigmoid")),
    ):
        if value not in known:
            msg = f"{WHO}: {name} needs to be one of {known}; got {value!r}. Choose one of them."
            raise ValueError(msg)
    if loss == "sigmoid" and len(class_C) != 2:
        msg = f"{WHO}: loss='sigmoid' needs two classes; got {len(class_C)}. Use loss='softmax'."
        raise ValueError(msg)
