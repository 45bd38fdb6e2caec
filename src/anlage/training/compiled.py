"""What of a network is compiled: blocks and heads, each to one graph for each list of shapes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from anlage.models.projection_head import ProjectionHead
from anlage.models.vit import VisionTransformer

MOST_GRAPHS = 64
"""Lists of shapes that one process may meet: networks, stages, and runs one after the other."""


def compile_parts(
    parts: Iterable[nn.Module], *, backend: str = "inductor", replays: bool = False
) -> None:
    """Have torch compile blocks and heads at their first pass, in place; names of parameters stay.

    Compiled are the blocks of transformers and the MLPs of projection heads, nothing around them. A
    pass that torch cannot take as one graph is an error, not a slower one. Modules of one kind
    share their graphs over all networks, so torch's limit on graphs (8, an error beyond) is raised
    to ``MOST_GRAPHS``; torch's cutting of graphs at each MB of parameters under DDP is switched
    off, as gradients come block by block anyhow. Call it before the network is sharded; a deep copy
    is not compiled. What hooks into modules, or passes other shapes than steps do, belongs under
    ``torch.compiler.set_stance("force_eager")``: hooks inside a compiled module are not seen.

    With ``replays`` what a compiled module gives lies in memory of its CUDA graphs, gradients of
    parameters included, and goes with the next ``torch.compiler.cudagraph_mark_step_begin()``:
    call that once a step, when no gradient and nothing else of the step before is left. Not
    verified on a GPU.

    Args:
        parts: Of networks: transformers and heads; those of other kinds stay as they are.
        backend: Of ``torch.compile``; of no account with ``replays``.
        replays: Have inductor record CUDA graphs, which later passes replay. CUDA only.
    """
    limits = torch.compiler.config
    limits.recompile_limit = max(limits.recompile_limit, MOST_GRAPHS)
    torch._dynamo.config.optimize_ddp = False
    how: dict[str, Any] = {"mode": "reduce-overhead"} if replays else {"backend": backend}
    for part in parts:
        for module in compiled_modules(part):
            module.compile(fullgraph=True, dynamic=False, **how)


def compiled_modules(part: nn.Module) -> Iterator[nn.Module]:
    """The modules of a network's part that are compiled, each by itself."""
    if isinstance(part, VisionTransformer):
        yield from part.blocks
    elif isinstance(part, ProjectionHead):
        yield part.mlp
