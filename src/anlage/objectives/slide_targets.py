"""What the losses of slides refuse, in one wording."""

# Shape suffixes: B bags, C outputs.

from __future__ import annotations

import torch
from torch import Tensor


def need_shapes(
    who: str, logits_BC: Tensor, target: Tensor, *, n_outputs: int | None = None, each: bool = False
) -> None:
    """Refuse logits that are not (B, C), or targets that are not one a bag (or one an output).

    Args:
        who: Function that asks.
        logits_BC: The logits.
        target: The targets.
        n_outputs: C that is needed; None for any of 1 or more.
        each: Whether each output has a target of its own, (B, C), in place of (B,).

    Raises:
        ValueError: If a shape does not fit.
    """
    shape = tuple(logits_BC.shape)
    fits = len(shape) == 2 and min(shape) >= 1 and n_outputs in {None, shape[-1]}
    if not fits or tuple(target.shape) != (shape if each else shape[:1]):
        msg = (
            f"{who}: needs logits of shape (bags, {n_outputs or 'outputs'}) and targets of shape "
            f"{'(bags, outputs)' if each else '(bags,)'}; got {shape} and {tuple(target.shape)}. "
            "Make the head and the targets for the same task."
        )
        raise ValueError(msg)


def need_finite(who: str, name: str, value: Tensor) -> None:
    """Refuse NaN and infinity.

    Args:
        who: Function that asks.
        name: What the values are.
        value: The values.

    Raises:
        ValueError: If one is not finite.
    """
    if not bool(torch.isfinite(value).all()):
        n_bad = int((~torch.isfinite(value)).sum())
        msg = (
            f"{who}: needs finite {name}; got {n_bad} of {value.numel()} that are not. "
            "Lower the learning rate, or look for NaN in the features."
        )
        raise ValueError(msg)


def need_whole_numbers(who: str, target: Tensor, *, n_classes: int) -> Tensor:
    """The target, refused where it is no class.

    Args:
        who: Function that asks.
        target: Targets of any shape and dtype.
        n_classes: They must be whole, 0 to ``n_classes - 1``.

    Raises:
        ValueError: If one is not.
    """
    value = target.float()
    is_class = (value >= 0) & (value < n_classes) & (value == value.floor())
    if not bool(is_class.all()):
        wrong = value[~is_class][:4].tolist()
        msg = (
            f"{who}: needs targets that are whole numbers, 0 to {n_classes - 1}; got {wrong}. "
            "Number the classes from 0, and leave out bags without a label."
        )
        raise ValueError(msg)
    return target
