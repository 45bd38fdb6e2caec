"""Poolings by name, as recipes and model folders ask for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from anlage.models.bag_pooling.attention import AttentionPooling
from anlage.models.bag_pooling.clam import ClamPooling
from anlage.models.bag_pooling.mean import MeanPooling
from anlage.models.bag_pooling.segments import BagPooling
from anlage.models.bag_pooling.transmil import TransMilPooling

POOLINGS: Mapping[str, Callable[..., BagPooling]] = {
    "mean": MeanPooling,
    "abmil": AttentionPooling,
    "gated_abmil": partial(AttentionPooling, gated=True),
    "clam_sb": partial(ClamPooling, multi_branch=False),
    "clam_mb": partial(ClamPooling, multi_branch=True),
    "transmil": TransMilPooling,
}
WITH_CLASSES = {"clam_sb", "clam_mb"}


def build_pooling(
    kind: str, *, input_width: int, n_classes: int = 2, **settings: object
) -> BagPooling:
    """A pooling of a kind, freshly drawn.

    Args:
        kind: A name in ``POOLINGS``.
        input_width: Width of the features.
        n_classes: Classes of the task, for CLAM.
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
    if kind in WITH_CLASSES:
        settings = {"n_classes": n_classes, **settings}
    try:
        return POOLINGS[kind](input_width=input_width, **settings)
    except TypeError as error:
        msg = f"build_pooling: {kind} does not take these settings: {error}. Leave them out."
        raise ValueError(msg) from error
