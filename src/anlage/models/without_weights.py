"""Networks as shapes alone: no memory for their weights, and no random number drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


@contextmanager
def without_weights() -> Iterator[None]:
    """Networks built inside have parameters of the right shape on the meta device.

    Drawing normal weights is skipped: the first draw on the meta device makes torch load its
    decompositions, which takes seconds.
    """
    with torch.device("meta"), _NoRandomFill():
        yield


class _NoRandomFill(TorchFunctionMode):
    """Leaves tensors as they are where normal weights would be drawn."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever torch returns
        kwargs = kwargs or {}
        return kwargs["tensor"] if func is nn.init.normal_ else func(*args, **kwargs)
