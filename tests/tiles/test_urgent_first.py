from __future__ import annotations

import threading

from anlage.tiles.urgent_first import UrgentFirst


def test_the_most_urgent_task_is_done_first_and_equals_in_turn() -> None:
    pool = UrgentFirst(1, name="test")
    gate, done = threading.Event(), []
    pool.submit(0, lambda: gate.wait(60) or None)
    for name, urgency in (("b", 5), ("a", 2), ("c", 5), ("d", 9), ("e", 2)):
        pool.submit(urgency, lambda name=name: done.append(name))
    gate.set()
    pool.close()
    assert "".join(done) == "aebcd"


def test_closing_waits_for_all_that_was_queued_and_ends_the_threads() -> None:
    pool, done = UrgentFirst(3, name="test-closing"), []
    for i in range(100):
        pool.submit(i, lambda i=i: done.append(i))
    pool.close()
    assert sorted(done) == list(range(100))
    assert not [t for t in threading.enumerate() if t.name.startswith("test-closing")]


def test_tasks_run_side_by_side() -> None:
    pool, together = UrgentFirst(2, name="test"), threading.Barrier(2, timeout=60)
    for _ in range(2):
        pool.submit(0, together.wait)
    pool.close()
    assert not together.broken
