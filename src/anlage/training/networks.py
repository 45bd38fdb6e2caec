"""What a run trains: a tile encoder with the heads of its objectives.

Shape suffixes: D width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Self, TypeVar

from torch import nn

from anlage.models.projection_head import ProjectionHead
from anlage.models.vit import VisionTransformer
from anlage.training.network_config import Architecture, Head

Result = TypeVar("Result")


class Learner(nn.Module):
    """A network that is run by whoever calls it, as its loss needs several of its parts."""

    def forward(self, work: Callable[[Self], Result]) -> Result:
        """Do some work with the network: one forward pass in the eyes of DDP and FSDP2.

        They gather parameters before it and wait for the gradients of what it returns, so that
        nothing of the network may be used outside, and tensors with a gradient have to stand in
        the result's tuples, lists and dicts.
        """
        return work(self)


class EncoderWithHeads(Learner):
    """A tile encoder and the projection heads of DINO and iBOT.

    Args:
        architecture: The transformer.
        head: The projection head of DINO.
        patch_head: iBOT's own; None where both share one (tied heads).

    Attributes:
        encoder: The vision transformer.
        head: Projects CLS tokens onto prototypes, and patch tokens where they have no head.
        patch_head: Projects patch tokens; None for tied heads.
    """

    def __init__(self, architecture: Architecture, head: Head, patch_head: Head | None) -> None:
        super().__init__()
        self.encoder = VisionTransformer(**architecture.model_dump())
        self.head = ProjectionHead(width=architecture.width, **head.model_dump())
        self.patch_head = (
            None
            if patch_head is None
            else ProjectionHead(width=architecture.width, **patch_head.model_dump())
        )

    @property
    def head_of_patches(self) -> ProjectionHead:
        """The head that patch tokens go through."""
        return self.head if self.patch_head is None else self.patch_head

    def parts(self) -> dict[str, nn.Module]:
        """The parts whose gradients are clipped each on its own, by name."""
        named = {"encoder": self.encoder, "head": self.head}
        return named if self.patch_head is None else {**named, "patch_head": self.patch_head}


class Pupil(Learner):
    """A tile encoder that learns to say another one's embeddings.

    Attributes:
        encoder: The vision transformer.
        head: One linear layer from its CLS and patch tokens to the teacher's width; not kept.
    """

    def __init__(self, architecture: Architecture, *, target_width: int) -> None:
        super().__init__()
        self.encoder = VisionTransformer(**architecture.model_dump())
        self.head = nn.Linear(architecture.width, target_width)

    def parts(self) -> dict[str, nn.Module]:
        """The parts whose gradients are clipped each on its own, by name."""
        return {"encoder": self.encoder, "head": self.head}


Network = TypeVar("Network", bound=nn.Module)


def frozen_copy(network: Network) -> Network:
    """A copy that no gradient reaches and that skips no block."""
    return copy.deepcopy(network).requires_grad_(requires_grad=False).eval()
