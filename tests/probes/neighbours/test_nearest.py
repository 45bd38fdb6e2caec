import numpy as np
import pytest
import torch

from anlage.probes.neighbours import exact_search, similarities
from anlage.probes.neighbours.nearest import nearest
from anlage.probes.neighbours.unit_rows import deviation_row, mean_row, unit_rows


def brute_force(query, bank, k, *, hidden=None):
    """Every pair in float64, sorted by (-similarity, row)."""
    result = []
    for i, q in enumerate(query.astype(np.float64)):
        similarity = [
            (-float(q @ b) / (np.linalg.norm(q) * np.linalg.norm(b)), j)
            for j, b in enumerate(bank.astype(np.float64))
            if hidden is None or not hidden(i, j)
        ]
        result.append([j for _, j in sorted(similarity)[:k]])
    return np.array(result)


def sorted_similarities(query, bank, k):
    """Neighbours by a stable sort of all float64 similarities of the rows on the grid."""
    unit = [unit_rows(torch.from_numpy(side.astype(np.float32))).double() for side in (query, bank)]
    value, index = (unit[0] @ unit[1].T).sort(dim=1, descending=True, stable=True)
    return index[:, :k].numpy(), value[:, :k].float().numpy()


@pytest.fixture
def small_blocks(monkeypatch):
    """Many blocks and slabs, so that small data take every turn."""
    monkeypatch.setattr(exact_search, "BLOCK_QUERIES", 7)
    monkeypatch.setattr(exact_search, "BLOCK_BYTES", 4 * 7 * 900)
    monkeypatch.setattr(exact_search, "WORKER_BYTES", 0)
    monkeypatch.setattr(exact_search, "RANK_BYTES", 8 * 6 * 5 * 2)
    monkeypatch.setattr(exact_search, "EXACT_BYTES", 8 * 6000)


@pytest.mark.parametrize("k", [1, 3, 40])
def test_nearest_is_brute_force(generator, k) -> None:
    query, bank = generator.normal(size=(13, 8)), generator.normal(size=(40, 8))
    index, similarity = nearest(query, bank, k=k)
    np.testing.assert_array_equal(index, brute_force(query, bank, k))
    assert (np.diff(similarity, axis=1) <= 0).all()
    assert index.dtype == np.int64
    assert similarity.dtype == np.float32


@pytest.mark.parametrize("k", [1, 20, 90])
@pytest.mark.parametrize("width", [5, 64])
def test_candidates_hold_the_neighbours(generator, k, width) -> None:
    """The float32 road: 4,000 rows, of which each query looks at a few in float64."""
    query, bank = generator.normal(size=(30, width)), generator.normal(size=(4000, width))
    index, similarity = nearest(query, bank, k=k)
    expected, value = sorted_similarities(query, bank, k)
    np.testing.assert_array_equal(index, expected)
    np.testing.assert_array_equal(similarity, value.clip(-1, 1))
    exact = np.take_along_axis(cosines(query, bank), index, axis=1)
    np.testing.assert_allclose(similarity, exact, atol=1e-7)


def cosines(query, bank):
    unit = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in (query, bank)]
    return unit[0] @ unit[1].T


def test_blocks_slabs_and_threads_change_nothing(generator, small_blocks, monkeypatch) -> None:
    bank = generator.integers(-2, 3, size=(3000, 5)).astype(float)  # many equal similarities
    bank[7] = 0
    in_blocks = nearest(bank[:40], bank, k=6)
    monkeypatch.undo()
    n_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    whole = nearest(bank[:40], bank, k=6)
    torch.set_num_threads(n_threads)
    np.testing.assert_array_equal(whole[0], in_blocks[0])
    np.testing.assert_array_equal(whole[1], in_blocks[1])
    np.testing.assert_array_equal(whole[0], sorted_similarities(bank[:40], bank, 6)[0])


@pytest.fixture
def three_workers(monkeypatch):
    monkeypatch.setattr(exact_search, "FEWEST_QUERIES", 8)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("n_rows", [200, 3000])
def test_workers_change_nothing(generator, small_blocks, three_workers, n_rows) -> None:
    """Both roads, rows hidden, and copies that are searched again in float64."""
    bank = generator.normal(size=(n_rows, 5))
    bank[100:150] = bank[100]
    group = np.arange(n_rows) % 9
    settings = {"k": 6, "query_group_Q": group[:120], "bank_group_M": group}
    by_three = nearest(bank[:120], bank, **settings)
    torch.set_num_threads(1)
    alone = nearest(bank[:120], bank, **settings)
    np.testing.assert_array_equal(by_three[0], alone[0])
    np.testing.assert_array_equal(by_three[1], alone[1])
    unit = unit_rows(torch.from_numpy(bank.astype(np.float32))).double()
    value = (unit[:120] @ unit.T).masked_fill(torch.from_numpy(group[:120, None] == group), -2)
    expected = value.sort(dim=1, descending=True, stable=True).indices[:, :6]
    np.testing.assert_array_equal(alone[0], expected)


@pytest.mark.parametrize("n_threads", [1, 2, 4, 16])
@pytest.mark.parametrize("n_queries", [1, 100, 2000, 7000])
def test_plans_hold_their_bound_and_keep_every_worker_busy(n_threads, n_queries) -> None:
    before, n_rows = torch.get_num_threads(), 100_000
    torch.set_num_threads(n_threads)
    plan = exact_search.Plan.of(torch.empty(n_queries, 2), n_rows=n_rows)
    torch.set_num_threads(before)
    assert plan.n_workers == max(1, min(n_threads, n_queries // 128))
    assert plan.step <= 512
    assert 4 * plan.n_workers * plan.step * plan.slab <= 1.01 * 2**20 * max(128, 32 * n_threads)
    assert plan.slab in {n_rows, plan.slab // 64 * 64}
    n_blocks = -(-n_queries // plan.step)
    assert n_blocks % plan.n_workers == 0


def test_units_means_and_deviations_are_the_same_on_any_number_of_threads(generator) -> None:
    rows = torch.from_numpy(generator.normal(3, 2, size=(9000, 5)).astype(np.float32))
    results, before = [], torch.get_num_threads()
    for n_threads in (1, 3):
        torch.set_num_threads(n_threads)
        mean = mean_row(rows)
        deviation = deviation_row(rows, mean)
        results.append((mean, deviation, unit_rows(rows, mean_D=mean, scale_D=deviation)))
    torch.set_num_threads(before)
    for alone, by_three in zip(*results, strict=True):
        assert torch.equal(alone, by_three)
    mean, deviation, unit = results[0]
    expected = (rows - mean) / deviation
    expected /= expected.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(unit, expected, atol=2**-26)


def by_poor_blas(query_QD, bank_SD, out_QS) -> None:
    """Sums from the other end, and as wrong as float32 may be."""
    torch.mm(query_QD.flip(1), bank_SD.flip(1).T, out=out_QS)
    noise = torch.rand(out_QS.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    out_QS += noise * 0.4 * similarities.float32_error(query_QD.shape[1])


def test_another_blas_changes_nothing(generator, monkeypatch) -> None:
    bank = generator.normal(size=(3000, 16))
    bank[1::2] = bank[::2] + 1e-6 * generator.normal(size=(1500, 16))  # nearly equal
    ours = nearest(bank[:50], bank, k=8)
    monkeypatch.setattr(similarities, "_by_torch", by_poor_blas)
    theirs = nearest(bank[:50], bank, k=8)
    np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_array_equal(ours[1], theirs[1])


def test_float32_alone_would_depend_on_the_blas(generator) -> None:
    """What the float64 ranking is for."""
    bank = generator.normal(size=(3000, 16))
    bank[1::2] = bank[::2] + 1e-6 * generator.normal(size=(1500, 16))
    unit = unit_rows(torch.from_numpy(bank.astype(np.float32)))
    ours, poor = unit[:50] @ unit.T, torch.empty(50, 3000)
    by_poor_blas(unit[:50], unit, poor)
    assert (ours.topk(8).indices != poor.topk(8).indices).any()


def test_both_blas_are_tried_and_the_faster_kept(generator, small_blocks, monkeypatch) -> None:
    calls = []

    def slow(query_QD, bank_SD, out_QS) -> None:
        calls.append("torch")
        clock[0] += 2
        torch.mm(query_QD, bank_SD.T, out=out_QS)

    def fast(query_QD, bank_SD, out_QS) -> None:
        calls.append("numpy")
        clock[0] += 1
        np.matmul(query_QD.numpy(), bank_SD.numpy().T, out=out_QS.numpy())

    clock = [0.0]
    monkeypatch.setattr(similarities, "_by_torch", slow)
    monkeypatch.setattr(similarities, "_by_numpy", fast)
    monkeypatch.setattr(similarities.time, "perf_counter", lambda: clock[0])
    query, bank = generator.normal(size=(56, 6)), generator.normal(size=(900, 6))
    index, _ = nearest(query, bank, k=2)
    assert calls == ["torch", "numpy"] * 2 + ["numpy"] * 4
    np.testing.assert_array_equal(index, sorted_similarities(query, bank, 2)[0])


def test_dot_products_on_the_grid_are_exact_in_any_order(generator) -> None:
    unit = unit_rows(torch.from_numpy(generator.normal(size=(200, 1000)).astype(np.float32)))
    product = unit[:1].double() * unit.double()
    order = generator.permutation(1000)
    forward, shuffled = product.sum(1), product[:, order].cumsum(1)[:, -1]
    assert torch.equal(forward, shuffled)
    assert torch.equal(forward, unit.double() @ unit[0].double())
    np.testing.assert_allclose(unit.norm(dim=1), 1, atol=1e-6)


def test_copies_in_the_bank_are_searched_in_float64(generator, small_blocks) -> None:
    """A collapsed encoder: more equal similarities than candidates; the lower rows are found."""
    bank = np.tile(generator.normal(size=(1, 6)), (900, 1))
    bank[800:] = generator.normal(size=(100, 6))
    index, similarity = nearest(bank[:20], bank, k=9)
    assert (index == np.arange(9)).all()
    assert (similarity == similarity[0, 0]).all()
    index, _ = nearest(bank, bank, k=9, exclude_own_row=True)
    assert index[3].tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    np.testing.assert_array_equal(index[800:], by_hidden_row(bank, 9)[800:])


def by_hidden_row(bank, k):
    unit = unit_rows(torch.from_numpy(bank.astype(np.float32))).double()
    value = (unit @ unit.T).fill_diagonal_(-torch.inf)
    return value.sort(dim=1, descending=True, stable=True).indices[:, :k].numpy()


@pytest.mark.parametrize("n_rows", [50, 900])
def test_own_row_is_left_out_in_every_block(generator, small_blocks, n_rows) -> None:
    bank = generator.normal(size=(n_rows, 6))
    index, _ = nearest(bank, bank, k=4, exclude_own_row=True)
    np.testing.assert_array_equal(index, by_hidden_row(bank, 4))
    assert (nearest(bank, bank, k=1)[0][:, 0] == np.arange(n_rows)).all()


@pytest.mark.parametrize("n_rows", [60, 1500])
def test_own_group_is_left_out(generator, small_blocks, n_rows) -> None:
    bank, query = generator.normal(size=(n_rows, 4)), generator.normal(size=(20, 4))
    bank_group = np.array([f"p{i % 5}" for i in range(n_rows)])
    query_group = np.array([f"p{i % 7}" for i in range(20)])  # p5 and p6 are not in the bank
    index, _ = nearest(query, bank, k=6, query_group_Q=query_group, bank_group_M=bank_group)
    expected = brute_force(query, bank, 6, hidden=lambda i, j: query_group[i] == bank_group[j])
    np.testing.assert_array_equal(index, expected)


def test_a_group_may_hold_nearly_all(generator) -> None:
    """Fewer rows are left than candidates are looked for."""
    bank = generator.normal(size=(1500, 4))
    group = np.zeros(1500, dtype=int)
    group[[3, 700]] = 1
    index, similarity = nearest(
        bank[:5], bank, k=2, query_group_Q=np.zeros(5, dtype=int), bank_group_M=group
    )
    assert {tuple(sorted(row)) for row in index.tolist()} == {(3, 700)}
    assert np.isfinite(similarity).all()


def test_hidden_candidates_stay_hidden_beside_a_query_that_needs_more(generator) -> None:
    """Similar rows of the first query's own group are candidates as well, of the whole block."""
    bank = 1 + 0.1 * generator.normal(size=(1500, 4))
    group = np.zeros(1500, dtype=int)
    group[[3, 700]] = 1
    bank[20:26] = bank[20]  # six copies, all needed by the second query
    index, _ = nearest(bank[[0, 20]], bank, k=2, query_group_Q=[0, 2], bank_group_M=group)
    assert sorted(index[0].tolist()) == [3, 700]
    assert index[1].tolist() == [20, 21]


def test_what_fills_up_the_last_chunk_is_no_row(generator) -> None:
    unit = unit_rows(torch.from_numpy(generator.normal(size=(100, 6)).astype(np.float32)))
    products = similarities.Similarities(unit.device, n_values=128 * 5, n_products=1)
    bank = exact_search.Bank(unit_MD=unit)
    value, row = exact_search._candidates(unit[:5], bank, products, slab=100, n=128, code_Q=None)
    assert value.isneginf().sum(dim=1).tolist() == [28] * 5
    assert int(row.max()) == 99
    assert all(len(set(found.tolist())) == 100 for found in row)


def test_equal_similarities_go_to_the_lower_row() -> None:
    bank = np.tile([[1.0, 0.0]], (9, 1))
    bank[4] = [0.0, 1.0]
    index, similarity = nearest(np.array([[2.0, 0.0]]), bank, k=5)
    assert index.tolist() == [[0, 1, 2, 3, 5]]
    assert similarity.tolist() == [[1.0] * 5]


def test_huge_tiny_and_zero_rows_are_compared() -> None:
    query = np.array([[3e38, 3e38], [1e-44, 1e-44], [0, 0]])
    _, similarity = nearest(query, np.array([[1.0, 1.0]]), k=1)
    np.testing.assert_allclose(similarity[:, 0], [1, 1, 0], atol=1e-6)


def test_tensors_and_other_types_are_taken(generator) -> None:
    bank = generator.integers(-9, 9, size=(30, 4))
    expected = nearest(bank.astype(np.float64), bank, k=3)
    for given in (torch.from_numpy(bank).half(), torch.from_numpy(bank).float().requires_grad_()):
        index, similarity = nearest(given, given, k=3)
        np.testing.assert_array_equal(index, expected[0])
        np.testing.assert_array_equal(similarity, expected[1])


def test_precision_and_autocast_of_the_caller_do_not_matter(generator) -> None:
    bank = torch.from_numpy(generator.normal(size=(2000, 32)))
    expected = nearest(bank[:30], bank, k=4)
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = nearest(bank[:30], bank, k=4)
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = "ieee"
    np.testing.assert_array_equal(found[0], expected[0])


def test_means_and_deviations_are_numpys(generator) -> None:
    rows = generator.normal(3, 2, size=(700, 5)).astype(np.float32)
    rows[:, 2] = 0.1
    tensor = torch.from_numpy(rows)
    mean = mean_row(tensor)
    np.testing.assert_allclose(mean, rows.mean(axis=0, dtype=np.float64), rtol=1e-14)
    deviation = deviation_row(tensor, mean).numpy()
    expected = rows.std(axis=0, dtype=np.float64)
    expected[2] = 1
    np.testing.assert_allclose(deviation, expected, rtol=1e-12)
    assert deviation[2] == 1


@pytest.mark.gpu
def test_cuda_finds_the_same(generator) -> None:
    bank = generator.normal(size=(5000, 96)).astype(np.float32)
    bank[100:160] = bank[300:360]
    expected = nearest(bank[:400], bank, k=20, exclude_own_row=False, device="cpu")
    for device, given in (("cuda", bank), (None, torch.from_numpy(bank).cuda())):
        index, similarity = nearest(given[:400], given, k=20, device=device)
        np.testing.assert_allclose(similarity, expected[1], atol=1e-6)
        assert (index == expected[0]).mean() > 0.999  # a norm may round another way


@pytest.mark.parametrize(
    ("rows", "settings", "match"),
    [
        ((3, 3), {"k": 3, "exclude_own_row": True}, r"k needs to be 1 to 2.*got 3.*larger bank"),
        ((3, 3), {"k": 0}, "k needs to be 1 to 3"),
        ((2, 3), {"k": 1, "exclude_own_row": True}, "the bank itself as the query"),
        ((3, 3), {"k": 1, "query_group_Q": [1, 2, 3]}, "groups of both sides; got one"),
        (
            (2, 3),
            {"k": 2, "query_group_Q": [1, 2], "bank_group_M": [2, 2, 3]},
            "k needs to be 1 to 1",
        ),
        ((2, 3), {"k": 1, "query_group_Q": [1], "bank_group_M": [2, 2, 3]}, "each of 2 rows"),
        (
            (3, 3),
            {"k": 1, "exclude_own_row": True, "query_group_Q": [1] * 3, "bank_group_M": [2] * 3},
            "or exclude_own_row; got both",
        ),
    ],
)
def test_nearest_refuses(rows, settings, match) -> None:
    with pytest.raises(ValueError, match=match):
        nearest(np.eye(3)[: rows[0]], np.eye(3)[: rows[1]], **settings)


def test_nearest_refuses_unlike_widths_and_nan() -> None:
    with pytest.raises(ValueError, match="one width; got 3 and 4"):
        nearest(np.eye(3), np.eye(4), k=1)
    with pytest.raises(ValueError, match="query needs finite numbers"):
        nearest(np.full((1, 3), np.nan), np.eye(3), k=1)
