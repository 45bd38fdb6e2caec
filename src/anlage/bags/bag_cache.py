"""Bags kept in memory between epochs, as many as fit."""

from __future__ import annotations

import threading
from collections import defaultdict
from pathlib import Path

from anlage.bags.bag_set import BagSet, LoadedBag
from anlage.distributed import ALONE, Ranks

MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
MOST_BYTES = 8 * 2**30
SHARE = 0.25  # of the free memory
UNKNOWN_BYTES = 4 * 2**30  # taken as free where the system does not say


class BagCache:
    """Reads bags, and keeps those that come first until the memory for them is full.

    Nothing is thrown out for another bag: over epochs in random order a bag that stays is read
    from memory every time, while one that was used last is rarely the next to be needed. With room
    for half of the bags this finds half of them; throwing out the least recently used, 15 %.

    A bag's checksum is compared, and its features are searched for NaN, when it is first read. A
    Zarr bag, whose objects could be of two bags, is compared each time.

    Safe to share between threads: two that want the same bag read it once.

    Attributes:
        bags: The set that they are of.
        most_bytes: Bytes of bags that are kept at most.
        n_bytes: Bytes that are kept now.
        n_read: Bags read from storage so far.
        n_kept: Bags taken from memory so far.
    """

    def __init__(
        self, bags: BagSet, *, most_bytes: int | None = None, ranks: Ranks = ALONE
    ) -> None:
        """Keep nothing yet.

        Args:
            bags: The set.
            most_bytes: Bytes to keep; None for a quarter of the free memory, at most 8 GiB.
            ranks: Processes of this machine share that quarter.
        """
        self.bags = bags
        self.most_bytes = default_bytes(ranks) if most_bytes is None else most_bytes
        self.n_bytes = self.n_read = self.n_kept = 0
        self._kept: dict[str, LoadedBag] = {}
        self._verified: set[str] = set()
        self._lock = threading.Lock()
        self._reading: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def take(self, slide_id: str) -> LoadedBag:
        """A bag, from memory or from storage; nobody may change its features.

        Raises:
            BagError: As ``BagSet.read``.
        """
        with self._lock:
            reading = self._reading[slide_id]
        with reading:
            kept = self._kept.get(slide_id)
            if kept is not None:
                with self._lock:
                    self.n_kept += 1
                return kept
            is_zarr = self.bags.facts[slide_id].place.endswith(".zarr")
            loaded = self.bags.read(slide_id, verify=is_zarr or slide_id not in self._verified)
            self._keep(loaded)
        return loaded

    def _keep(self, loaded: LoadedBag) -> None:
        with self._lock:
            self.n_read += 1
            self._verified.add(loaded.slide_id)
            if self.n_bytes + loaded.n_bytes <= self.most_bytes:
                self.n_bytes += loaded.n_bytes
                self._kept[loaded.slide_id] = loaded


def default_bytes(ranks: Ranks = ALONE) -> int:
    """A quarter of the free memory, at most 8 GiB, shared by the processes of this machine."""
    return int(min(SHARE * free_bytes(), MOST_BYTES)) // ranks.local_size


def free_bytes() -> int:
    """Memory that can be used without swapping, bytes; 4 GiB where the system does not say."""
    try:
        lines = MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        lines = []
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return min([*found, *_free_of_container()], default=UNKNOWN_BYTES)


def _free_of_container() -> list[int]:
    """What the limit of a container leaves free (cgroup 2), if there is one."""
    try:
        limit = (CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = int((CGROUP / "memory.current").read_text(encoding="ascii"))
        lines = (CGROUP / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return []
    if not limit.isdecimal():
        return []
    cached = next((int(x.split()[1]) for x in lines if x.startswith("inactive_file ")), 0)
    return [max(int(limit) - used + cached, 0)]
