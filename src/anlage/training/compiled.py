"""Transformer blocks compiled one by one, each to one graph for each list of shapes."""

from __future__ import annotations

from anlage.models.layers.block import Block
from anlage.models.vit import VisionTransformer


def compile_blocks(encoder: VisionTransformer, *, backend: str = "inductor") -> None:
    """Have torch compile every block at its first pass, in place; names of parameters stay.

    A pass that torch cannot take as one graph is an error, not a slower one. Call it before the
    network is sharded.

    Args:
        encoder: The transformer.
        backend: Of ``torch.compile``.
    """
    for block in encoder.blocks:
        assert isinstance(block, Block), "a transformer's blocks"
        block.compile(fullgraph=True, dynamic=False, backend=backend)
