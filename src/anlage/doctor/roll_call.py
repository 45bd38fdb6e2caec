"""Who of a job's processes is there, before they share any work."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from torch.distributed import DistStoreError, TCPStore  # type: ignore[attr-defined]

from anlage.doctor.findings import named
from anlage.errors import DistributedError

LEAST_WAIT_S = 0.1


@contextmanager
def roll_call(*, timeout_s: float) -> Iterator[list[str]]:
    """Wait until every rank has come, and name those that have not.

    The ranks meet where rank 0 (or the agent of ``torchrun``) listens, as they do for training. The
    place stays open for as long as the context lasts, so that the process group can form there.

    Args:
        timeout_s: Longest that this rank waits for the others.

    Yields:
        Name of each rank's machine, in order of ranks.

    Raises:
        DistributedError: If rank 0 cannot be reached, or a rank does not come in time.
    """
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    who = f"rank {rank} of {world_size}"
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if address is None or port is None:
        msg = (
            "needs MASTER_ADDR and MASTER_PORT, where rank 0 listens; they are not set. "
            "torchrun sets them."
        )
        raise DistributedError(who, msg)
    until = time.monotonic() + timeout_s
    try:
        store = TCPStore(
            address,
            int(port),
            is_master=rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
            timeout=timedelta(seconds=timeout_s),
            wait_for_workers=False,
            multi_tenant=True,
        )
        call = f"roll_call/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        store.set(f"{call}/{rank}", platform.node())
        machines = _wait(store, call, who=who, until=until, timeout_s=timeout_s)
    except (RuntimeError, ValueError) as error:  # torch's own errors of a store are of these kinds
        msg = (
            f"cannot reach rank 0 at {address}:{port} within {timeout_s:g} s: {error} See in its "
            "log whether it runs; check MASTER_ADDR, MASTER_PORT and the firewall between them."
        )
        raise DistributedError(who, msg) from error
    yield machines


def _wait(store: TCPStore, call: str, *, who: str, until: float, timeout_s: float) -> list[str]:
    """Machines of all ranks."""
    keys = [f"{call}/{rank}" for rank in range(int(os.environ["WORLD_SIZE"]))]
    try:
        left = max(until - time.monotonic(), LEAST_WAIT_S)
        store.wait(keys, timedelta(seconds=left))
    except DistStoreError as error:
        here = [rank for rank, key in enumerate(keys) if store.check([key])]
        absent = [rank for rank in range(len(keys)) if rank not in here]
        if not absent:  # the last of them came at the very end
            return _values(store, keys)
        places = ", ".join(dict.fromkeys(_values(store, [keys[rank] for rank in here])))
        msg = (
            f"waited {timeout_s:g} s for the others; {named(absent)} did not come. "
            f"{named(here).capitalize()} came, from {places}. Look into the log of the machine "
            "that is missing: it did not start, or cannot reach the address of rank 0."
        )
        raise DistributedError(who, msg) from error
    return _values(store, keys)


def _values(store: TCPStore, keys: list[str]) -> list[str]:
    return [store.get(key).decode() for key in keys]
