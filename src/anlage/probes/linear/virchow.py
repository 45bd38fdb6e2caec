"""The linear probe of Virchow: SGD with a cosine on z-scored embeddings, chosen by validation."""

# Shape suffixes: M train rows, V validation rows, C classes, D embedding width.

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from anlage.probes.checks import Rows, train_side
from anlage.probes.linear.descent import SgdDescent, cosine_lr, diverged
from anlage.probes.linear.held_out import tenth_held_out
from anlage.probes.linear.settings import refuse_numbers
from anlage.probes.linear.stack import HeadStack, shuffled_epochs
from anlage.probes.linear.standardise import mean_and_deviation
from anlage.probes.linear.validation import BestHeads, ValidationSide, validation_side
from anlage.probes.precision import float32_products
from anlage.probes.prediction import LinearHead

WHO = "linear_probe_virchow"


@dataclass(frozen=True, kw_only=True, slots=True)
class SgdProtocol:
    """How a head is trained by stochastic gradient descent.

    Attributes:
        lr: Learning rate of the first step; half a cosine takes it to zero.
        momentum: 0 to below 1.
        weight_decay: Added to the gradient, of weights and bias.
        batch: Rows of a batch.
        n_steps: Batches.
        check_every: Steps between two looks at the validation side; the last step has one too.
        choose: What the returned head is best in: validation loss, or F1 weighted by class.
        is_z_scored: Whether embeddings are z-scored by the mean and deviation of the train rows.
        has_fixed_draws: Whether as many rows as there are are drawn once, with replacement, and
            come again in that order in every epoch, rather than all rows in a new order each time.
    """

    lr: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 0.0
    batch: int = 4096
    n_steps: int = 12_500
    check_every: int = 100
    choose: Literal["loss", "weighted_f1"] = "loss"
    is_z_scored: bool = True
    has_fixed_draws: bool = False


VIRCHOW = SgdProtocol()
GIGAPATH_PCAM = SgdProtocol(
    lr=0.02,
    weight_decay=0.01,
    batch=128,
    n_steps=4000,
    choose="weighted_f1",
    is_z_scored=False,
    has_fixed_draws=True,
)


def linear_probe_virchow(
    train_MD: Rows,
    label_M: Rows,
    *,
    validation: tuple[Rows, Rows] | None = None,
    group_M: Rows | None = None,
    protocol: SgdProtocol = VIRCHOW,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> LinearHead:
    """One linear layer on z-scored embeddings, by SGD with a cosine; best by validation loss.

    Weights start as ``torch.nn.Linear``'s. Every 100 steps and after the last one, the head is
    scored on the validation side; the first best one is returned.

    Without a validation side a tenth of the train rows is held out and never trained on: whole
    groups (patients) where ``group_M`` is given, with classes spread as evenly as groups allow.

    Float32 without TF32, mean and deviation in float64, with torch's own threads. Beside the
    arrays given, memory is one z-scored copy of both sides (and, where a tenth is
    held out, a plain one for a moment) and 4 * batch * D bytes.

    Args:
        train_MD: (M, D) embeddings of the train side; tensors stay on their device.
        label_M: (M,) their labels, strings or integers.
        validation: (V, D) embeddings and (V,) labels that choose the step. Not the test side.
        group_M: (M,) patient of each train row, for holding out; not used with ``validation``.
        protocol: ``VIRCHOW``, or ``GIGAPATH_PCAM``, or settings of one's own.
        seed: Of the first weights, the order of rows and the rows held out.
        device: Where to train; by default where the embeddings are.

    Returns:
        The head; ``note`` names the step it was taken from.

    Raises:
        ValueError: If an array or a setting is unusable, a class would be held out whole, or the
            training diverges.

    Source: Vorontsov et al. 2024, Virchow, and Zimmermann et al. 2024, Virchow2,
    arXiv:2408.00738: z-score, batch 4,096, 0.01 with a cosine, 12,500 iterations, best validation
    loss, a tenth of train where no validation is. Momentum and decay of zero are the defaults of
    prov-gigapath's linear_probe/main.py; its script for PatchCamelyon is ``GIGAPATH_PCAM``. How
    often to validate is that script's; the order of rows is ours.
    """
    _refuse_protocol(protocol)
    train, class_C, code_M = train_side(WHO, train_MD, label_M, device=device)
    if validation is None:
        kept, held = tenth_held_out(WHO, code_M, group_M, class_C=class_C, seed=seed)
        side = ValidationSide(row_VD=train[held], code_V=code_M[held], n_classes=len(class_C))
        train, code_M = train[kept], code_M[kept]
    else:
        side = validation_side(WHO, validation, train_MD=train, class_C=class_C)
    mean_D, scale_D = torch.zeros_like(train[0]), torch.ones_like(train[0])
    if protocol.is_z_scored:
        mean_D, scale_D = (part.float() for part in mean_and_deviation(train))
        train = (train - mean_D).div_(scale_D)
        z_scored = (side.row_VD - mean_D).div_(scale_D)
        side = ValidationSide(row_VD=z_scored, code_V=side.code_V, n_classes=side.n_classes)
    with float32_products(train.device):
        best = _train(train, code_M, side=side, protocol=protocol, seed=seed)
    return LinearHead(
        weight_CD=best.weight_RCD[0],
        bias_C=best.bias_RC[0],
        mean_D=mean_D,
        scale_D=scale_D,
        class_C=class_C,
        note=f"seed {seed}, step {best.step_R[0]} of {protocol.n_steps}",
    )


def _train(
    train_MD: Tensor, code_M: Tensor, *, side: ValidationSide, protocol: SgdProtocol, seed: int
) -> BestHeads:
    stack = HeadStack(train_MD, n_outputs=side.n_classes, seeds=[seed])
    descent = SgdDescent(
        stack.parameter_P, weight_decay=protocol.weight_decay, momentum=protocol.momentum
    )
    best = BestHeads(stack, patience=None)
    score = side.minus_loss if protocol.choose == "loss" else side.weighted_f1
    batches = _batches(train_MD, protocol=protocol, seed=seed)
    for step, row_1B in zip(range(protocol.n_steps), batches):  # noqa: B905  (batches never end)
        stack.set_gradient(row_1B, code_M[row_1B])
        lr = cosine_lr(step, peak_lr=protocol.lr, n_steps=protocol.n_steps)
        descent.step(stack.gradient_P, lr=lr)
        if (step + 1) % protocol.check_every == 0 or step + 1 == protocol.n_steps:
            best.consider(stack, score(stack), step=step + 1)
    if not (best.step_R[0] and best.weight_RCD.isfinite().all()):
        raise ValueError(diverged(WHO, n_steps=protocol.n_steps, lr=protocol.lr))
    return best


def _batches(train_MD: Tensor, *, protocol: SgdProtocol, seed: int) -> Iterator[Tensor]:
    """(1, B) rows of each batch, without end; the last, short one of an epoch is kept."""
    n_rows, device = len(train_MD), train_MD.device
    if protocol.has_fixed_draws:
        generator = torch.Generator().manual_seed(seed)
        drawn_1M = torch.randint(n_rows, (1, n_rows), generator=generator).to(device)
        while True:
            yield from torch.split(drawn_1M, protocol.batch, dim=1)
    for row_1M in shuffled_epochs(n_rows, seeds=[seed], device=device):
        yield from torch.split(row_1M, protocol.batch, dim=1)


def _refuse_protocol(protocol: SgdProtocol) -> None:
    counts = {name: getattr(protocol, name) for name in ("batch", "n_steps", "check_every")}
    decays = {name: getattr(protocol, name) for name in ("momentum", "weight_decay")}
    refuse_numbers(WHO, whole=counts, positive={"lr": protocol.lr}, not_negative=decays)
    if protocol.momentum >= 1:
        msg = f"{WHO}: momentum needs to be below 1; got {protocol.momentum}. Try 0.9."
        raise ValueError(msg)
    if protocol.choose not in {"loss", "weighted_f1"}:
        msg = (
            f"{WHO}: choose needs to be 'loss' or 'weighted_f1'; got {protocol.choose!r}. "
            "Choose one of them."
        )
        raise ValueError(msg)
