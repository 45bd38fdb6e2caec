"""Whether ranks get right numbers from each other, how fast, and whether their clocks agree."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median

import torch
import torch.distributed as dist

from anlage.distributed import Ranks
from anlage.doctor.findings import Finding, named

ROUNDS = 5
CLOCK_ROUNDS = 8
LARGEST_OFFSET_S = 1.0  # beyond, times of files and of log lines of two machines mislead


def network(ranks: Ranks, device: torch.device, *, n_bytes: int = 1 << 26) -> Iterator[Finding]:
    """Sum and gather numbers whose result is known, and time it.

    Bandwidth is that of NVIDIA's nccl-tests: what each link must have carried, so that figures of
    any number of ranks compare. W ranks and S bytes of the result in t seconds are
    2 (W - 1) / W * S / t for a sum and (W - 1) / W * S / t for a gather.

    Args:
        ranks: All processes; more than one.
        device: Where the tensors lie, and so whether NCCL or gloo carries them.
        n_bytes: Size of the result, bytes.

    Yields:
        A finding for each of the two; the same on every rank.

    Source: NVIDIA, nccl-tests, doc/PERFORMANCE.md (bus bandwidth).
    """
    world = ranks.world_size
    n_rows = n_bytes // 4 // world
    own = torch.full((n_rows,), float(ranks.rank + 1), device=device)
    summed = torch.empty(n_rows * world, device=device)

    def refill() -> None:
        summed.fill_(ranks.rank + 1)

    expected = torch.arange(1, world + 1, device=device).repeat_interleave(n_rows)
    for name, call, wanted, share in (
        ("all_reduce", lambda: ranks.sum(summed), world * (world + 1) / 2, 2.0),
        ("all_gather", lambda: ranks.rows(own), expected, 1.0),
    ):
        took_s, result = _timed(call, refill, device)
        is_right = bool((result == wanted).all())
        told = ranks.objects((is_right, took_s))
        wrong = [rank for rank, (right, _) in enumerate(told) if not right]
        slowest = max(seconds for _, seconds in told)
        carried = share * (world - 1) / world * 4 * len(result) / slowest / 1e9
        if wrong:
            reason = f"gives wrong numbers on {named(wrong)}. Try NCCL_P2P_DISABLE=1; see dmesg"
            yield Finding("link", name, "broken", reason)
        else:
            told_size = f"{4 * len(result) / 1e6:.0f} MB in {slowest * 1e3:.1f} ms"
            yield Finding("link", name, "ok", f"{told_size}: {carried:.3g} GB/s bus bandwidth")


def _timed(
    call: Callable[[], torch.Tensor], refill: Callable[[], None], device: torch.device
) -> tuple[float, torch.Tensor]:
    """Median time of some rounds after one that is thrown away, and the last result."""
    took_s = []
    for _ in range(1 + ROUNDS):
        refill()
        dist.barrier()
        _wait_for(device)
        began = time.perf_counter()
        result = call()
        _wait_for(device)
        took_s.append(time.perf_counter() - began)
    return median(took_s[1:]), result


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clocks(ranks: Ranks, *, clock: Callable[[], float] = time.time) -> Iterator[Finding]:
    """Compare every rank's clock with that of rank 0, by messages there and back.

    Args:
        ranks: All processes; more than one.
        clock: Seconds since an epoch.

    Yields:
        One finding; the same on every rank.
    """
    told = ranks.objects(clock_offset(ranks, clock=clock))
    furthest = max(range(len(told)), key=lambda rank: abs(told[rank][0]))
    ahead_s, error_s = told[furthest]
    if abs(ahead_s) - error_s > LARGEST_OFFSET_S:
        late = [r for r, (ahead, error) in enumerate(told) if abs(ahead) - error > LARGEST_OFFSET_S]
        word = "ahead of" if ahead_s > 0 else "behind"
        reason = (
            f"{named(late)} differ from rank 0, rank {furthest} most: {abs(ahead_s):.1f} s {word} "
            "it; times of files and logs mislead. Run NTP or chrony on every machine"
        )
        yield Finding("rank", "clocks", "missing", reason)
    else:
        most_ms, least_ms = 1e3 * abs(ahead_s), 1e3 * max(error for _, error in told)
        yield Finding("rank", "clocks", "ok", f"within {most_ms:.1f} ms (± {least_ms:.1f} ms)")


def clock_offset(ranks: Ranks, *, clock: Callable[[], float] = time.time) -> tuple[float, float]:
    """How far this rank's clock is ahead of rank 0's.

    With a question sent at t0 and answered at t3 by this clock, and heard at t1 and answered at t2
    by rank 0's, the offset is ((t0 - t1) + (t3 - t2)) / 2, wrong by at most half the time on the
    way; that of the quickest of some rounds is taken.

    Args:
        ranks: All processes; all call this together.
        clock: Seconds since an epoch.

    Returns:
        Seconds ahead (0 on rank 0), and the most by which that can be wrong.

    Source: Mills et al. 2010, NTP version 4, RFC 5905, section 8.
    """
    times = torch.zeros(2, dtype=torch.float64)
    if ranks.is_main:
        for other in range(1, ranks.world_size):
            for _ in range(CLOCK_ROUNDS):
                dist.recv(times, src=other, group=ranks.background)
                heard = clock()
                times[0], times[1] = heard, clock()
                dist.send(times, dst=other, group=ranks.background)
        return 0.0, 0.0
    found = []
    for _ in range(CLOCK_ROUNDS):
        asked = clock()
        dist.send(times, dst=0, group=ranks.background)
        dist.recv(times, src=0, group=ranks.background)
        answered = clock()
        heard, replied = times.tolist()
        on_the_way = (answered - asked) - (replied - heard)
        found.append((on_the_way, ((asked - heard) + (answered - replied)) / 2))
    on_the_way, ahead = min(found)
    return ahead, max(on_the_way, 0.0) / 2
