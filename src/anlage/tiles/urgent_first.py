"""Threads that always do the most urgent of the waiting tasks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count


class UrgentFirst:
    """A pool of threads over a queue ordered by urgency, first come first served among equals.

    A redrawn tile of the step that is needed next must not wait behind hundreds of regions that
    were asked for ahead of their time, which is what a first-in first-out pool does.

    Tasks must not raise: each reports its own errors to whoever waits for it.
    """

    def __init__(self, threads: int, *, name: str) -> None:
        self._waiting: list[tuple[int, int, Callable[[], None]]] = []
        self._numbers = count()
        self._changed = threading.Condition()
        self._is_closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{i}", daemon=True)
            for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, urgency: int, task: Callable[[], None]) -> None:
        """Queue a task; the lowest ``urgency`` is done first. After ``close`` nobody does it."""
        with self._changed:
            heappush(self._waiting, (urgency, next(self._numbers), task))
            self._changed.notify()

    def close(self) -> None:
        """Return once all that was queued has been done, and the threads have ended."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._is_closed:
                    self._changed.wait()
                if not self._waiting:
                    return
                task = heappop(self._waiting)[2]
            task()
            del task  # its arrays must not live until the next one comes
