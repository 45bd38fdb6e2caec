"""Products of one thread stand until its own next ones, whatever the others compute."""

import threading

import pytest
import torch

from anlage.probes.neighbours.similarities import Similarities
from anlage.probes.neighbours.worker_threads import in_threads

N_WORKERS = 2
CPU = torch.device("cpu")


@pytest.fixture
def one_thread_each():
    before = torch.get_num_threads()
    torch.set_num_threads(N_WORKERS)
    yield
    torch.set_num_threads(before)


def test_workers_write_into_memory_of_their_own(one_thread_each) -> None:
    """All write large blocks before any reads its own: in shared memory the last would be left."""
    generator = torch.Generator().manual_seed(0)
    queries = [torch.randn(256, 16, generator=generator) for _ in range(N_WORKERS)]
    bank_SD = torch.randn(4000, 16, generator=generator)
    products = Similarities(CPU, n_values=256 * 4032, n_products=64)
    all_written = threading.Barrier(N_WORKERS)

    def write_and_wait(query_QD: torch.Tensor) -> torch.Tensor:
        for _ in range(6):  # torch's, NumPy's and whichever is faster
            value_QS = products.of(query_QD, bank_SD)
        all_written.wait(timeout=20)
        return value_QS

    found = in_threads(write_and_wait, queries, n_workers=N_WORKERS)
    for query_QD, value_QS in zip(queries, found, strict=True):
        torch.testing.assert_close(value_QS[:, :4000], query_QD @ bank_SD.T)
        assert value_QS[:, 4000:].isneginf().all()
    assert found[0].data_ptr() != found[1].data_ptr()


def test_the_next_products_of_a_thread_take_the_place_of_its_last() -> None:
    products = Similarities(CPU, n_values=2 * 64, n_products=1)
    first = products.of(torch.ones(2, 3), torch.ones(5, 3))
    again = products.of(torch.ones(1, 3), 2 * torch.ones(60, 3))
    assert again.data_ptr() == first.data_ptr()
    assert again.tolist() == [[6.0] * 60 + [-torch.inf] * 4]
