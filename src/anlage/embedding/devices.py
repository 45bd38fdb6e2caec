"""One stream of batches, shared by one thread a device."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Batch = TypeVar("Batch")


class SharedBatches(Generic[Batch]):
    """Batches of which each goes to whoever asks first.

    Args:
        batches: Advanced by one thread at a time.
    """

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches, self._lock = batches, threading.Lock()
        self._is_over = False

    def stop(self) -> None:
        """Give out no more."""
        self._is_over = True

    def __iter__(self) -> Iterator[Batch]:
        while True:
            with self._lock:
                if self._is_over:
                    return
                try:
                    batch = next(self._batches)
                except StopIteration:
                    self._is_over = True
                    return
                except BaseException:
                    self._is_over = True
                    raise
            yield batch


def on_each_device(
    n_devices: int, batches: Iterator[Batch], work: Callable[[int, Iterator[Batch]], None]
) -> None:
    """Run ``work`` once a device at the same time, all on one stream of batches.

    A device takes its next batch when it is ready for it, so that a slow one holds up nobody. The
    first error stops the stream for all, and is raised once they have ended.

    Args:
        n_devices: How many; one works in this thread.
        batches: The stream.
        work: Given the number of a device, and the batches that are left.
    """
    shared = SharedBatches(batches)
    if n_devices == 1:
        work(0, iter(shared))
        return

    def guarded(device: int) -> None:
        try:
            work(device, iter(shared))
        except BaseException:
            shared.stop()
            raise

    with ThreadPoolExecutor(n_devices, thread_name_prefix="anlage-device") as pool:
        running = [pool.submit(guarded, device) for device in range(n_devices)]
        try:
            for each in running:
                each.result()
        except BaseException:
            shared.stop()
            raise
