"""Poolings by name, as recipes and model folders ask for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from anlage.models.bag_pooling.attention import AttentionPooling
from anlage.models.bag_pooling.mean import MeanPooling

POOLINGS: Mapping[str, Callable[..., nn.Module]] = {
    "mean": MeanPooling,
    "abmil": AttentionPooling,
    "gated_abmil": partial(AttentionPooling, gated=True),
}


def build_pooling(kind: str, *, input_width: int, **settings: Any) -> nn.Module:  # noqa: ANN401 - the pooling's own
    """A pooling of a kind, freshly drawn.

    Args:
        kind: A name in ``POOLINGS``.
        input_width: Width of the features.
        **settings: Keyword arguments of that pooling.

    Raises:
        ValueError: If the kind is unknown, or a setting is not the pooling's or out of range.
    """
    if kind not in POOLINGS:
        msg = (
            f"build_pooling: needs one of the kinds {', '.join(POOLINGS)}; got {kind!r}. "
            "Choose one of them."
        )
        raise ValueError(msg)
    try:
        return POOLINGS[kind](input_width=input_width, **settings)
    except TypeError as error:
        msg = f"build_pooling: {kind} does not take these settings: {error}. Leave them out."
        raise ValueError(msg) from error
