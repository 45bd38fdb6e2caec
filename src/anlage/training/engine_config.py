"""How a run uses its devices; what it learns does not depend on it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import PositiveFloat, PositiveInt, model_validator

from anlage.training.section import Section

Kind = Literal["auto", "single", "ddp", "fsdp2", "hsdp"]
Recompute = Literal["none", "selective", "full"]
Compile = Literal["none", "blocks", "graphs"]
Linears = Literal["plain", "float8"]


class Engine(Section):
    """How a run is spread over devices and made to fit them. A run may go on with another one.

    Attributes:
        kind: ``single`` (one device), ``ddp`` (every rank holds the networks), ``fsdp2`` (they are
            sharded over all ranks), ``hsdp`` (sharded within groups of ranks that mirror each
            other); ``auto`` is ``single`` alone and ``ddp`` with others.
        shard_over: Ranks of a group that shards the networks (hsdp); those of a machine if None.
        recompute: What of the student runs again in the backward pass instead of being kept:
            ``none``, ``selective`` (norms and activations: about two fifths less memory for
            activations, a few per cent more time) or ``full`` (whole blocks: little is kept, a
            third more time).
        compile: ``none``; ``blocks``, torch.compile of each block and of the heads' MLPs, to one
            graph each, as shapes stay the same from step to step; or ``graphs``, the same replayed
            as CUDA graphs (on a GPU, where nothing is sharded; not verified on one).
        linears: What the linear layers of the student's blocks multiply in: ``plain`` (as
            ``precision`` says) or ``float8`` (extra ``float8``; for blocks of 1280 or wider on a
            GPU of compute capability 8.9 or more; not verified on one).
        timeout_s: Longest that a rank waits for the others, seconds.
    """

    kind: Kind = "auto"
    shard_over: PositiveInt | None = None
    recompute: Recompute = "none"
    compile: Compile = "none"
    linears: Linears = "plain"
    timeout_s: PositiveFloat = 600.0

    @model_validator(mode="after")
    def _only_hsdp_has_groups(self) -> Self:
        if self.shard_over is not None and self.kind != "hsdp":
            msg = f"shard_over needs kind=hsdp; got kind={self.kind}"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _graphs_replay_where_weights_stay(self) -> Self:
        if self.compile == "graphs" and self.kind in {"fsdp2", "hsdp"}:
            msg = (
                "compile=graphs needs weights that stay in place, not gathered for each pass; got "
                f"kind={self.kind}. Use compile=blocks, or kind=ddp"
            )
            raise ValueError(msg)
        return self
