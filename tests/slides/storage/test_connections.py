from __future__ import annotations

import threading
from functools import partial

import pytest

from anlage.slides.storage.connections import N_CONNECTIONS, gather

WAIT_S = 60  # only a hang takes as long


def test_results_come_in_the_order_of_the_jobs() -> None:
    jobs = [partial(pow, i, 2) for i in range(200)]
    assert gather(jobs, sum).result(WAIT_S) == sum(i * i for i in range(200))


def test_jobs_run_side_by_side() -> None:
    barrier = threading.Barrier(8, timeout=WAIT_S)
    assert len(gather([barrier.wait] * 8, list).result(WAIT_S)) == 8


def test_the_first_error_is_told() -> None:
    def fail() -> int:
        raise KeyError

    with pytest.raises(KeyError):
        gather([lambda: 1, fail, lambda: 2], list).result(WAIT_S)


def test_an_error_of_the_end_is_told() -> None:
    with pytest.raises(TypeError):
        gather([lambda: "a"], sum).result(WAIT_S)


def test_what_is_cancelled_does_not_begin() -> None:
    go, begun = threading.Event(), []
    blocking = gather([partial(go.wait, WAIT_S)] * N_CONNECTIONS, list)
    cancelled = gather([partial(begun.append, 1)] * 5, list)
    assert cancelled.cancel()
    go.set()
    assert blocking.result(WAIT_S) == [True] * N_CONNECTIONS
    gather([lambda: None] * N_CONNECTIONS, list).result(WAIT_S)
    assert begun == []
