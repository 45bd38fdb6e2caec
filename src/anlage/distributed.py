"""The processes that train together: who they are, and what they tell each other.

Shape suffixes: B rows of a rank, W ranks, D width.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from anlage.errors import AnlageError, DistributedError

LOGGER = logging.getLogger(__name__)
Value = TypeVar("Value")
GATHER = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)  # its name since 2.13
LEAVE_S = 5.0  # that a rank waits for the others at its end
TIMEOUT_S = 600.0
"""Longest that a rank waits for the others before it gives up."""


@dataclass(frozen=True)
class Ranks:
    """The processes that share each step; one process alone needs no process group.

    Every method that takes a tensor is a collective: all ranks call it in the same order. Alone,
    each gives its argument back.

    Attributes:
        rank: This process among them, from 0.
        world_size: How many there are, W.
        local_rank: This process among those of its machine.
        local_size: How many there are on this machine.
        background: Group for collectives of a thread beside the loop (checkpoints); None alone.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_size: int = 1
    background: Any = field(default=None, repr=False, compare=False)

    @property
    def name(self) -> str:
        """This process in words."""
        return f"rank {self.rank} of {self.world_size}"

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether there are no others."""
        return self.world_size == 1

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        if not self.is_alone:
            dist.all_reduce(tensor)
        return tensor

    def mean(self, tensor: Tensor) -> Tensor:
        """Mean over ranks, in place."""
        return tensor if self.is_alone else self.sum(tensor).div_(self.world_size)

    def log_sum_exp(self, tensor: Tensor) -> Tensor:
        """Logarithm of the sum over ranks of exponentials; -inf where every rank has it."""
        if self.is_alone:
            return tensor
        largest = tensor.clone()
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        base = torch.where(largest.isneginf(), 0.0, largest)
        return self.sum((tensor - base).exp_()).log_().add_(base)

    def rows(self, row_BD: Tensor) -> Tensor:
        """Rows of all ranks, (W * B, ...), rank by rank; no gradient flows.

        Every rank gives as many.
        """
        if self.is_alone:
            return row_BD.detach()
        flat = row_BD.detach().contiguous()
        out = flat.new_empty((self.world_size * len(flat), *flat.shape[1:]))
        GATHER(out, flat)
        return out

    def rows_with_gradient(self, row_BD: Tensor) -> Tensor:
        """Rows of all ranks, (W * B, ...), for a loss that every rank computes from all of them.

        The gradient that reaches this rank's rows is W times that of the loss, so that the mean of
        the ranks' parameter gradients is the gradient of the loss over all rows.
        """
        if self.is_alone:
            return row_BD
        out: Tensor = _RowsOfAll.apply(row_BD, self)  # type: ignore[no-untyped-call]
        return out

    def objects(self, value: Value) -> list[Value]:
        """Every rank's value, in order of ranks."""
        if self.is_alone:
            return [value]
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, value)
        return found

    def from_main(self, make: Callable[[], Value]) -> Value:
        """What rank 0 makes, on every rank; an error of ours that it meets is raised on all.

        Raises:
            AnlageError: What rank 0 raised.
        """
        if self.is_alone:
            return make()
        told: list[tuple[Any, AnlageError | None]] = [(None, None)]
        if self.is_main:
            try:
                told = [(make(), None)]
            except AnlageError as refused:
                dist.broadcast_object_list([(None, refused)])
                raise
        dist.broadcast_object_list(told)
        value, error = told[0]
        if error is not None:
            raise error
        return value  # type: ignore[no-any-return]


class _RowsOfAll(torch.autograd.Function):
    """Rows of all ranks forward; W times this rank's own share of the gradient backward."""

    @staticmethod
    def forward(ctx: Any, row_BD: Tensor, ranks: Ranks) -> Tensor:  # noqa: ANN401 - torch's context
        ctx.ranks, ctx.n_rows = ranks, len(row_BD)
        return ranks.rows(row_BD)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        own = slice(ctx.ranks.rank * ctx.n_rows, (ctx.ranks.rank + 1) * ctx.n_rows)
        return upstream[own] * ctx.ranks.world_size, None


ALONE = Ranks()


def is_launched() -> bool:
    """Whether ``torchrun`` (or anything that sets its variables) started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


@contextmanager
def process_group(device: str = "auto", *, timeout_s: float = TIMEOUT_S) -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` started, and leave them at the end.

    NCCL carries tensors on CUDA devices, gloo those on the CPU and everything else. A process that
    was started alone needs no group and gets none.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``; decides whether NCCL is needed.
        timeout_s: Longest that a rank waits for the others.

    Yields:
        Who this process is.

    Raises:
        DistributedError: If there is no GPU for this rank, or the others cannot be reached, or are
            lost while work is shared.
    """
    if not is_launched():
        yield ALONE
        return
    uses_cuda = device != "cpu" and torch.cuda.is_available()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if uses_cuda:
        _refuse_missing_gpu(local_rank, who=Ranks(rank, world_size).name)
        torch.cuda.set_device(local_rank)
    limit = timedelta(seconds=timeout_s)
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if uses_cuda else "gloo",
            rank=rank,
            world_size=world_size,
            timeout=limit,
        )
        background = dist.new_group(backend="gloo", timeout=limit) if world_size > 1 else None
    except (RuntimeError, ValueError) as error:
        msg = (
            f"cannot reach the others: {error}. Check MASTER_ADDR, MASTER_PORT and the firewall; "
            "`anlage doctor --distributed` tells more."
        )
        raise DistributedError(Ranks(rank, world_size).name, msg) from error
    ranks = Ranks(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        local_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        background=background,
    )
    try:
        with loss_of_a_rank_told(ranks):
            yield ranks
    except DistributedError:
        raise  # there is nobody to leave with
    except BaseException:
        _leave_together(ranks)
        raise
    else:
        _leave_together(ranks)
    finally:
        dist.destroy_process_group()


def _refuse_missing_gpu(local_rank: int, *, who: str) -> None:
    n_devices = torch.cuda.device_count()
    if local_rank >= n_devices:
        msg = (
            f"is number {local_rank} of its machine, which has {n_devices} GPUs. Start "
            f"{n_devices} there (--nproc-per-node), or ask for more GPUs."
        )
        raise DistributedError(who, msg)


def _leave_together(ranks: Ranks) -> None:
    """Wait a moment for the others: a rank that is gone makes those crash that still talk to it."""
    if ranks.is_alone:
        return
    try:
        waiting = dist.barrier(group=ranks.background, async_op=True)
        waiting.wait(timedelta(seconds=LEAVE_S))
    except RuntimeError as error:
        LOGGER.info("%s leaves alone: %s", ranks.name, error)


@contextmanager
def loss_of_a_rank_told(ranks: Ranks) -> Iterator[None]:
    """Say in our words that another rank is gone, where a collective failed for it.

    Raises:
        DistributedError: If so.
    """
    try:
        yield
    except RuntimeError as error:  # torch's own errors of a collective are of this kind
        if ranks.is_alone or not _is_of_a_collective(error):
            raise
        msg = (
            f"lost the others: {error}. One of them has ended; its own log says why. Start the "
            "job again with --resume: it goes on from the newest checkpoint."
        )
        raise DistributedError(ranks.name, msg) from error


def _is_of_a_collective(error: RuntimeError) -> bool:
    words = ("gloo", "NCCL", "Connection closed", "Connection reset", "ProcessGroup", "TCPStore")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)
