from __future__ import annotations

import threading
import time

import pytest

from anlage.embedding.devices import on_each_device


def test_each_batch_goes_to_one_device_and_a_slow_one_gets_fewer():
    taken = {0: [], 1: []}

    def work(device, batches):
        for batch in batches:
            taken[device].append(batch)
            time.sleep(0.02 if device else 0.001)

    on_each_device(2, iter(range(60)), work)
    assert sorted(taken[0] + taken[1]) == list(range(60))
    assert 0 < len(taken[1]) < len(taken[0])


def test_one_device_works_in_the_callers_thread():
    seen = []
    on_each_device(1, iter("ab"), lambda _, batches: seen.extend([*batches, threading.get_ident()]))
    assert seen == ["a", "b", threading.get_ident()]


@pytest.mark.parametrize("where", ["device", "stream"])
def test_an_error_ends_all_and_is_raised(where):
    taken = []

    def stream():
        for number in range(1000):
            if where == "stream" and number == 20:
                raise KeyError(number)
            yield number

    def work(device, batches):
        for batch in batches:
            taken.append(batch)
            if where == "device" and device == 1:
                raise KeyError(batch)
            time.sleep(0.001)

    with pytest.raises(KeyError):
        on_each_device(2, stream(), work)
    assert len(taken) < 1000
