"""One network over several devices: mirrored (DDP), sharded (FSDP2), or both (HSDP).

The loop is the same for all of them: a network is called with the work to be done with it, its
gradients are averaged over ranks, and what changes weights works on this rank's shards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from anlage.distributed import Ranks
from anlage.errors import DeviceError, DistributedError
from anlage.models.vit import VisionTransformer
from anlage.training.engine_config import Engine

Network_co = TypeVar("Network_co", covariant=True)
Result = TypeVar("Result")


class Run(Protocol[Network_co]):
    """Does some work with a network in one forward pass of it."""

    def __call__(self, work: Callable[[Network_co], Result], /) -> Result:
        """The work's result; tensors with a gradient stand in its tuples, lists and dicts."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the networks of a run lie.

    Attributes:
        kind: ``single``, ``ddp``, ``fsdp2`` or ``hsdp``.
        ranks: The processes.
        mesh: Ranks that shard networks, (replicas, shards) under HSDP; None where nobody does.
        dtype: What autocast multiplies in, and what the blocks' linear layers are gathered in;
            float32 if None.
    """

    kind: str
    ranks: Ranks
    mesh: DeviceMesh | None = None
    dtype: torch.dtype | None = None

    @property
    def is_sharded(self) -> bool:
        """Whether a rank holds only a part of each network."""
        return self.mesh is not None

    @classmethod
    def of(
        cls,
        engine: Engine,
        ranks: Ranks,
        device: torch.device,
        *,
        dtype: torch.dtype | None = None,
    ) -> Layout:
        """The layout that a recipe asks for, on the ranks that there are.

        One process alone is ``single`` whatever is asked for: it has nobody to share with.

        Args:
            engine: What the recipe asks for.
            ranks: The processes.
            device: This rank's.
            dtype: From ``autocast_dtype``.

        Raises:
            DeviceError: If CUDA graphs are asked for elsewhere than on CUDA.
            DistributedError: If the ranks cannot be laid out so.
        """
        _refuse_graphs_elsewhere(engine, device)
        kind = engine.kind
        if kind == "auto":
            kind = "single" if ranks.is_alone else "ddp"
        if ranks.is_alone:
            return cls("single", ranks, dtype=dtype)
        if kind == "single":
            msg = (
                f"engine.kind=single is for one process; got {ranks.world_size}. Use ddp, fsdp2 "
                "or hsdp, or start it without torchrun."
            )
            raise DistributedError(ranks.name, msg)
        if kind == "ddp":
            return cls(kind, ranks, dtype=dtype)
        if kind == "fsdp2":
            mesh = init_device_mesh(device.type, (ranks.world_size,), mesh_dim_names=("shard",))
            return cls(kind, ranks, mesh, dtype)
        n_shards = engine.shard_over or ranks.local_size
        if ranks.world_size % n_shards:
            msg = (
                f"engine.shard_over={n_shards} needs to divide the {ranks.world_size} ranks. Set "
                "it to the ranks of a machine."
            )
            raise DistributedError(ranks.name, msg)
        shape = (ranks.world_size // n_shards, n_shards)
        names = ("replicate", "shard")
        mesh = init_device_mesh(device.type, shape, mesh_dim_names=names)
        return cls(kind, ranks, mesh, dtype)

    def spread(self, network: nn.Module) -> None:
        """Shard a network in place, block by block, if this layout shards; else leave it.

        A block gathers its linear layers when it is called, in the dtype that autocast would bring
        them to anyhow; nothing computes otherwise for it. All else (tokens, embedding, norms,
        LayerScale, heads) is gathered in float32 when the network is called, and given back after
        the backward pass, or, where no gradient is asked for, after the forward pass. Gradients are
        averaged in float32.
        """
        if self.mesh is None:
            return
        trains = any(parameter.requires_grad for parameter in network.parameters())
        encoder = network if isinstance(network, VisionTransformer) else network.encoder
        assert isinstance(encoder, VisionTransformer), "a network is an encoder, or has one"
        of_linears = set(parameters_of_linears(encoder.blocks))
        # A frozen network is averaged into on its shards: gathered weights would go stale.
        fully_shard(
            network,
            mesh=self.mesh,
            reshard_after_forward=not trains,
            ignored_params=of_linears,
        )
        gathered = MixedPrecisionPolicy(
            param_dtype=self.dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        for block in encoder.blocks:
            others = set(block.parameters()) - of_linears
            fully_shard(block, mesh=self.mesh, mp_policy=gathered, ignored_params=others)

    def runner(self, network: nn.Module) -> nn.Module:
        """What runs a network that trains: itself, or DDP around it."""
        if self.kind != "ddp":
            return network
        return DistributedDataParallel(network, gradient_as_bucket_view=True)


def parameters_of_linears(network: nn.Module) -> list[nn.Parameter]:
    """Weights and biases of a network's linear layers."""
    linears = [module for module in network.modules() if isinstance(module, nn.Linear)]
    return [parameter for linear in linears for parameter in linear.parameters()]


def _refuse_graphs_elsewhere(engine: Engine, device: torch.device) -> None:
    if engine.compile == "graphs" and device.type != "cuda":
        msg = (
            "has no CUDA graphs, which engine.compile=graphs needs. Set engine.compile=blocks, or "
            "train on a CUDA device."
        )
        raise DeviceError(str(device), msg)


def averaged(run: object, *, is_last: bool) -> contextlib.AbstractContextManager[object]:
    """Context of one forward and backward pass; DDP averages gradients after the last one only."""
    if isinstance(run, DistributedDataParallel) and not is_last:
        return run.no_sync()
    return contextlib.nullcontext()


def without_gradients(layout: Layout) -> contextlib.AbstractContextManager[object]:
    """Context of a teacher's pass: inference mode, where FSDP2 does not have to gather in it."""
    return torch.no_grad() if layout.is_sharded else torch.inference_mode()


def own_shards(tensors: Iterable[Tensor]) -> list[Tensor]:
    """This rank's part of each tensor, sharing its memory; the tensor itself if it is whole."""
    return [t.to_local() if isinstance(t, DTensor) else t for t in tensors]


def whole(tensor: Tensor) -> Tensor:
    """A tensor in full on every rank; a collective where it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
