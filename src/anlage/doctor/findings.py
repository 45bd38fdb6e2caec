"""What a doctor found: one thing each, to be read or as JSON, of one process or of many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

State = Literal["ok", "missing", "broken"]
MARKS: dict[State, str] = {"ok": " ", "missing": "-", "broken": "!"}
BY_SEVERITY: tuple[State, ...] = ("ok", "missing", "broken")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        part: "version", "codec", "format", "plug-in", "remote", "machine", "speed" or "slide"; of
            a job "rank", "link", "shared folder" or "loader".
        name: What it is.
        state: "ok"; "missing", which matters to those who need it; "broken", which is an error.
        told: What was found: a number, a version, the reason.
    """

    part: str
    name: str
    state: State
    told: str


def is_well(findings: Sequence[Finding]) -> bool:
    """Whether nothing is broken; what is only missing does not count."""
    return all(finding.state != "broken" for finding in findings)


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """The findings as JSON can hold them."""
    return {
        "format": "doctor/1",
        "is_well": is_well(findings),
        "findings": [asdict(finding) for finding in findings],
    }


def as_lines(findings: Sequence[Finding]) -> Iterator[str]:
    """The findings to be read: a heading for each part, and one line a finding."""
    part = None
    for finding in findings:
        if finding.part != part:
            part = finding.part
            yield f"{part}s"
        yield f"{MARKS[finding.state]} {finding.name:<28} {finding.told}"
    broken = sum(finding.state == "broken" for finding in findings)
    yield "all is well" if not broken else f"broken, and marked !: {broken}"


def of_all_ranks(findings_of_ranks: Sequence[Sequence[Finding]]) -> list[Finding]:
    """The findings of many processes as one list: what they agree on once, the rest by rank.

    Args:
        findings_of_ranks: Findings of rank 0, of rank 1, and so on.

    Returns:
        One finding for each part and name, parts together, in the order in which they first come;
        its state is the worst that a rank found.
    """
    found: dict[tuple[str, str], dict[int, Finding]] = {}
    for rank, findings in enumerate(findings_of_ranks):
        for finding in findings:
            found.setdefault((finding.part, finding.name), {})[rank] = finding
    parts = list(dict.fromkeys(part for part, _ in found))
    in_order = sorted(found.items(), key=lambda item: parts.index(item[0][0]))
    return [_one(by_rank, n_ranks=len(findings_of_ranks)) for _, by_rank in in_order]


def _one(by_rank: dict[int, Finding], *, n_ranks: int) -> Finding:
    first = next(iter(by_rank.values()))
    said: dict[str, list[int]] = {}
    for rank, finding in by_rank.items():
        said.setdefault(finding.told, []).append(rank)
    if len(said) == 1 and len(by_rank) == n_ranks:
        told = first.told
    else:
        told = "; ".join(f"{named(ranks)}: {text}" for text, ranks in said.items())
    worst = max((finding.state for finding in by_rank.values()), key=BY_SEVERITY.index)
    return replace(first, state=worst, told=told)


def named(ranks: Sequence[int]) -> str:
    """Ranks in words, those that follow each other as a range: "ranks 0, 2-5"."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    told = ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in spans)
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {told}"
