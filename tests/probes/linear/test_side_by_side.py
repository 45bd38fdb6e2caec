import threading

import pytest
import torch

from anlage.probes.linear.side_by_side import advance_side_by_side


class Job:
    def __init__(self, n_pieces) -> None:
        self.n_left, self.seen, self.busy = n_pieces, [], threading.Lock()

    def __call__(self) -> bool:
        assert self.busy.acquire(blocking=False), "two threads in one job"
        self.seen.append((threading.get_ident(), torch.get_num_threads()))
        self.n_left -= 1
        self.busy.release()
        return self.n_left > 0


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_every_job_is_called_to_its_end_with_one_torch_thread(n_threads) -> None:
    jobs = [Job(n) for n in (5, 1, 40, 3, 8)]
    before = torch.get_num_threads()
    advance_side_by_side(jobs, n_threads=n_threads)
    assert [len(job.seen) for job in jobs] == [5, 1, 40, 3, 8]
    seen = {piece for job in jobs for piece in job.seen}
    assert {n for _, n in seen} == {1}
    assert len({thread for thread, _ in seen}) <= n_threads
    assert torch.get_num_threads() == before


def test_an_error_stops_the_others_and_reaches_the_caller() -> None:
    def fail() -> bool:
        msg = "no"
        raise RuntimeError(msg)

    endless = lambda: True  # noqa: E731
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="no"):
        advance_side_by_side([fail, endless], n_threads=2)
    assert torch.get_num_threads() == before
