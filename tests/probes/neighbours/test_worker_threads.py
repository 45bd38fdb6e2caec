import threading

import pytest
import torch

from anlage.probes.neighbours.worker_threads import in_threads


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("n_workers", [1, 2, 9])
def test_results_come_in_the_order_of_the_pieces(four_threads, n_workers) -> None:
    assert in_threads(lambda piece: piece**2, range(50), n_workers=n_workers) == [
        piece**2 for piece in range(50)
    ]


@pytest.mark.parametrize(("n_workers", "share"), [(1, 4), (2, 2), (3, 1), (8, 1)])
def test_workers_run_at_once_and_share_out_torchs_threads(four_threads, n_workers, share) -> None:
    all_here = threading.Barrier(n_workers)

    def threads_inside(_: int) -> int:
        all_here.wait(timeout=20)
        return torch.get_num_threads()

    assert in_threads(threads_inside, range(n_workers), n_workers=n_workers) == [share] * n_workers


def threads_of_a_later_thread() -> int:
    found = []
    later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    later.start()
    later.join()
    return found[0]


def test_the_callers_threads_are_as_they_were(four_threads) -> None:
    def fail(piece: int) -> None:
        raise OSError(piece)

    with pytest.raises(OSError, match="0"):
        in_threads(fail, range(6), n_workers=2)
    assert torch.get_num_threads() == 4
    assert threads_of_a_later_thread() == 4


@pytest.mark.parametrize("ends_first", ["first", "second"])
def test_threads_are_as_they_were_after_callers_that_overlap(four_threads, ends_first) -> None:
    """The second caller is a new thread, which begins with what the first one's workers have."""
    ended = {"first": threading.Event(), "second": threading.Event()}
    first_is_in, second_is_in = threading.Event(), threading.Event()
    last = "second" if ends_first == "first" else "first"
    found: dict[str, int] = {}

    def call(name: str, is_in: threading.Event) -> None:
        def work(_: int) -> None:
            is_in.set()
            second_is_in.wait(timeout=20)
            if name == last:
                ended[ends_first].wait(timeout=20)

        in_threads(work, range(4), n_workers=4)
        found[name] = torch.get_num_threads()
        ended[name].set()

    callers = [threading.Thread(target=call, args=("first", first_is_in))]
    callers[0].start()
    assert first_is_in.wait(timeout=20)
    callers.append(threading.Thread(target=call, args=("second", second_is_in)))
    callers[1].start()
    for caller in callers:
        caller.join()
    assert found == {"first": 4, "second": 4}
    assert threads_of_a_later_thread() == 4


@pytest.mark.parametrize("n_workers", [1, 2])
def test_gradients_are_off_and_inference_is_the_callers(four_threads, n_workers) -> None:
    def modes(_: int) -> tuple[bool, bool]:
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    assert in_threads(modes, range(4), n_workers=n_workers) == [(False, False)] * 4
    with torch.inference_mode():
        written = torch.zeros(4)
        assert in_threads(modes, range(4), n_workers=n_workers) == [(False, True)] * 4
        in_threads(lambda i: written[i].fill_(i), range(4), n_workers=n_workers)
    assert written.tolist() == [0, 1, 2, 3]
