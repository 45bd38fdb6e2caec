"""Examine many slides at once, in threads or in processes of which any may be killed.

A decoder that is handed a damaged file can take its whole process with it. So with workers every
slide is read in a process that does nothing else; if that ends, its slide is refused and another
takes its place. The libraries for DICOM take two seconds to import, so those slides are kept
together: the first worker begins with them, the others at the other end.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

import cv2

from anlage.slides.indexing.examine import Examined, Task, TissueSettings, Unusable, examine
from anlage.slides.storage.location import suffix_of

LOGGER = logging.getLogger(__name__)
N_THREADS = 2
READY = "ready"
Outcome = Examined | Unusable


def examine_all(
    tasks: Sequence[Task], settings: TissueSettings, *, workers: int | None
) -> Iterator[tuple[int, Outcome]]:
    """Examine slides, several at a time.

    Args:
        tasks: The slides.
        settings: How their tissue is found.
        workers: Processes; None for two threads of this one.

    Yields:
        The number of a task and what became of it, in the order in which they are done.
    """
    if workers is None:
        yield from _in_threads(tasks, settings)
    elif tasks:
        yield from _in_processes(tasks, settings, min(workers, len(tasks)))


def _in_threads(tasks: Sequence[Task], settings: TissueSettings) -> Iterator[tuple[int, Outcome]]:
    with ThreadPoolExecutor(N_THREADS) as pool:
        futures = {pool.submit(examine, task, settings): i for i, task in enumerate(tasks)}
        try:
            for future in as_completed(list(futures)):
                yield futures.pop(future), future.result()  # popped: its pictures are let go
        finally:  # a full disk is told at once, not after all slides were examined
            pool.shutdown(wait=False, cancel_futures=True)


@dataclass(slots=True)
class _Worker:
    """A process, our end of its pipe, the end of the queue it takes from, the task it is at."""

    process: SpawnProcess
    pipe: Connection
    is_first: bool
    task: int | None = None


def _in_processes(
    tasks: Sequence[Task], settings: TissueSettings, n_workers: int
) -> Iterator[tuple[int, Outcome]]:
    waiting = deque(sorted(range(len(tasks)), key=lambda i: not _is_dicom(tasks[i])))
    workers: list[_Worker] = []
    try:
        for number in range(n_workers):
            workers.append(_started(settings, is_first=number == 0))  # noqa: PERF401 - for finally
        for worker in workers:
            _give(worker, waiting, tasks)
        while busy := [worker for worker in workers if worker.task is not None]:
            ready = set(wait([worker.pipe for worker in busy]))
            for worker in (worker for worker in busy if worker.pipe in ready):
                done, outcome = worker.task, _received(worker)
                if not isinstance(outcome, Examined | Unusable):
                    outcome = _died(worker)
                    workers.remove(worker)
                    workers.append(worker := _started(settings, is_first=worker.is_first))
                _give(worker, waiting, tasks)
                assert done is not None
                yield done, outcome
    finally:
        for worker in workers:
            worker.process.terminate()
            worker.process.join()
            worker.pipe.close()


def _is_dicom(task: Task) -> bool:
    return suffix_of(task.slide.location) == ".dcm"


def _started(settings: TissueSettings, *, is_first: bool) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, settings), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours, is_first)


def _give(worker: _Worker, waiting: deque[int], tasks: Sequence[Task]) -> None:
    """Hand a worker that is ready its next task, if there is one."""
    if worker.task is None and _received(worker) != READY:
        msg = (
            "examine_all needs to start processes; the first ended at once. In a script, call it "
            'below `if __name__ == "__main__":`, or leave workers out.'
        )
        raise RuntimeError(msg)
    worker.task = None
    if waiting:
        worker.task = waiting.popleft() if worker.is_first else waiting.pop()
        try:
            worker.pipe.send(tasks[worker.task])
        except OSError:  # it has just died: reading its pipe will tell
            LOGGER.debug("worker %s is gone", worker.process.pid)


def _received(worker: _Worker) -> Outcome | str | None:
    """What a worker has found out, or that it is ready; None if it has died."""
    try:
        received: Outcome | str = worker.pipe.recv()
    except (EOFError, OSError):
        return None
    return received


def _died(worker: _Worker) -> Unusable:
    worker.process.join()
    worker.pipe.close()
    code = worker.process.exitcode or 0
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return Unusable(
        f"cannot be read: the process that read it ended by {how}. The file is damaged in a way "
        "that its decoder does not survive, or the memory was short. Check the file."
    )


def _work(pipe: Connection, settings: TissueSettings) -> None:
    """A worker's life: examine what comes, until the pipe is closed at the other end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that reads the pipe
    cv2.setNumThreads(1)  # a worker is a core; it counts them all otherwise
    pipe.send(READY)
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(examine(task, settings))
        except BrokenPipeError:
            return
