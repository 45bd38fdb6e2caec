"""Jobs that go on side by side, each in one thread at a time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

Job = Callable[[], bool]


def advance_side_by_side(jobs: Sequence[Job], *, n_threads: int) -> None:
    """Call every job until it says that it is over; ``n_threads`` of them run at any moment.

    A job that has more to do goes to the end of the queue, so that all stay about level and the
    threads are busy to the end. Inside, torch computes with one thread: arrays of a mini-batch
    are too small to share, and a job's numbers then depend on nothing that runs beside it.
    Torch's number of threads is put back afterwards; it is shared by the whole process.

    Args:
        jobs: Each does a piece of its work in a call and returns whether there is more.
        n_threads: Jobs that run at once, >= 1.
    """
    waiting, is_stopped = deque(jobs), threading.Event()
    is_inference = torch.is_inference_mode_enabled()  # a new thread starts outside it

    def work() -> None:
        torch.set_num_threads(1)
        while not is_stopped.is_set():
            try:
                job = waiting.popleft()
            except IndexError:
                return
            try:
                with torch.inference_mode(is_inference):
                    has_more = job()
            except BaseException:
                is_stopped.set()
                raise
            if has_more:
                waiting.append(job)

    n_before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(n_threads, thread_name_prefix="probe") as pool:
            try:
                for future in [pool.submit(work) for _ in range(n_threads)]:
                    future.result()
            finally:
                is_stopped.set()
    finally:
        torch.set_num_threads(n_before)
