"""Findings of many processes as one list, beside lists written by hand."""

from __future__ import annotations

from anlage.doctor.findings import Finding, named, of_all_ranks


def test_what_ranks_agree_on_is_told_once() -> None:
    ranks = [[Finding("rank", "torch", "ok", "2.13")]] * 3
    assert of_all_ranks(ranks) == [Finding("rank", "torch", "ok", "2.13")]


def test_what_differs_is_told_by_rank_with_the_worst_state() -> None:
    told = [("ok", "a"), ("missing", "b"), ("ok", "a"), ("ok", "a"), ("broken", "c")]
    ranks = [[Finding("machine", "limit", state, text)] for state, text in told]
    expected = Finding("machine", "limit", "broken", "ranks 0, 2-3: a; rank 1: b; rank 4: c")
    assert of_all_ranks(ranks) == [expected]


def test_what_only_some_found_names_them_and_parts_stay_together() -> None:
    first = [Finding("rank", "a", "ok", "x"), Finding("machine", "b", "ok", "y")]
    second = [*first, Finding("rank", "c", "missing", "z")]
    assert of_all_ranks([first, second]) == [
        Finding("rank", "a", "ok", "x"),
        Finding("rank", "c", "missing", "rank 1: z"),
        Finding("machine", "b", "ok", "y"),
    ]


def test_ranks_are_named_in_ranges() -> None:
    assert named([3]) == "rank 3"
    assert named([0, 1, 2, 5, 7, 8]) == "ranks 0-2, 5, 7-8"
