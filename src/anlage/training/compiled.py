"""Transformer blocks compiled one by one, each to one graph for each list of shapes."""

from __future__ import annotations

import torch

from anlage.models.layers.block import Block
from anlage.models.vit import VisionTransformer

MOST_GRAPHS = 64
"""Lists of shapes that one process may meet: networks, stages, and runs one after the other."""


def compile_blocks(encoder: VisionTransformer, *, backend: str = "inductor") -> None:
    """Have torch compile every block at its first pass, in place; names of parameters stay.

    A pass that torch cannot take as one graph is an error, not a slower one. Blocks of all networks
    share their graphs, so torch's limit on graphs (8, an error beyond) is raised to
    ``MOST_GRAPHS``. Call it before the network is sharded; a deep copy is not compiled. What hooks
    into modules, or passes other shapes than steps do, belongs under
    ``torch.compiler.set_stance("force_eager")``: hooks inside a compiled block are not seen.

    Args:
        encoder: The transformer.
        backend: Of ``torch.compile``.
    """
    limits = torch.compiler.config
    limits.recompile_limit = max(limits.recompile_limit, MOST_GRAPHS)
    for block in encoder.blocks:
        assert isinstance(block, Block), "a transformer's blocks"
        block.compile(fullgraph=True, dynamic=False, backend=backend)
