"""The journal of read errors: when a slide is quarantined, and that a kill changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anlage.errors import CheckpointError
from anlage.tiles.quarantine import ErrorPolicy, QuarantineJournal, ReadError

B = 10  # samples of a step


def error(g: int, slide_id: str = "a", *, attempt: int = 0) -> ReadError:
    return ReadError(g // B, g, attempt, slide_id, f"torn at {g}")


def journal(folder: Path, *, after: int | None = 3) -> QuarantineJournal:
    return QuarantineJournal(folder / "quarantine.jsonl", ErrorPolicy(quarantine_after=after))


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]


def test_a_slide_is_quarantined_with_its_nth_error(tmp_path: Path) -> None:
    log = journal(tmp_path)
    assert log.note(0, [error(3), error(2, "b")], from_step=4) == []
    assert log.note(1, [error(11)], from_step=4) == []
    assert log.note(2, [], from_step=8) == []
    (slide,) = log.note(3, [error(35), error(31), error(33, "b")], from_step=8)
    assert (slide.slide_id, slide.from_step, slide.decided_at_step) == ("a", 8, 3)
    assert (slide.n_errors, slide.first_error) == (4, "torn at 3")
    assert set(log.quarantined) == {"a"}
    assert log.note(4, [error(41)], from_step=8) == []  # decided once
    *errors, decision, last = lines(tmp_path)
    assert decision == {
        "slide_id": "a",
        "from_step": 8,
        "decided_at_step": 3,
        "n_errors": 4,
        "first_error": "torn at 3",
    }
    assert [e["g"] for e in errors] == [2, 3, 11, 31, 33, 35]
    assert last == {"step": 4, "g": 41, "attempt": 0, "slide_id": "a", "error": "torn at 41"}


def test_attempts_of_one_sample_count_apart(tmp_path: Path) -> None:
    errors = [error(1, attempt=k) for k in range(3)]
    assert len(journal(tmp_path).note(0, errors, from_step=2)) == 1


def test_a_journal_opened_again_knows_everything_and_writes_nothing_twice(tmp_path: Path) -> None:
    first = journal(tmp_path)
    first.note(0, [error(1), error(2)], from_step=4)
    first.note(5, [error(50)], from_step=8)
    before = (tmp_path / "quarantine.jsonl").read_bytes()
    again = journal(tmp_path)
    assert again.failed == first.failed
    assert again.quarantined == first.quarantined
    assert set(again.quarantined) == {"a"}
    assert again.note(0, [error(1), error(2)], from_step=4) == []
    assert again.note(5, [error(50)], from_step=8) == []
    assert (tmp_path / "quarantine.jsonl").read_bytes() == before


def test_errors_beyond_the_step_do_not_count_yet(tmp_path: Path) -> None:
    """Killed before the decision was written: it is made at the same step again."""
    first = journal(tmp_path)
    first.note(0, [error(1), error(2)], from_step=4)
    first.note(5, [error(50)], from_step=8)
    path = tmp_path / "quarantine.jsonl"
    kept = path.read_text().splitlines(keepends=True)[:-1]  # all errors, no decision
    path.write_text("".join(kept))
    again = journal(tmp_path)
    assert again.quarantined == {}
    assert again.note(0, [error(1), error(2)], from_step=4) == []
    (slide,) = again.note(5, [error(50)], from_step=8)
    assert slide == first.quarantined["a"]


def test_half_a_last_line_is_dropped(tmp_path: Path) -> None:
    journal(tmp_path).note(0, [error(1), error(2)], from_step=4)
    path = tmp_path / "quarantine.jsonl"
    whole = path.read_bytes()
    for cut in (1, 20, len(whole) // 2):
        path.write_bytes(whole[:-cut])
        log = journal(tmp_path)
        assert set(log.failed) == {(1, 0)} if cut < len(whole) // 2 else len(log.failed) <= 1
        log.note(0, [error(1), error(2)], from_step=4)
        assert path.read_bytes() == whole


@pytest.mark.parametrize("line", ["{}", "[]", "nonsense", '{"from_step": 3}'])
def test_a_damaged_journal_is_refused(tmp_path: Path, line: str) -> None:
    journal(tmp_path).note(0, [error(1)], from_step=4)
    path = tmp_path / "quarantine.jsonl"
    path.write_text(line + "\n" + path.read_text())
    with pytest.raises(CheckpointError, match=r"quarantine\.jsonl: line 1 needs a read error"):
        journal(tmp_path)


def test_a_journal_of_bytes_that_are_no_text_is_refused(tmp_path: Path) -> None:
    journal(tmp_path).note(0, [error(1)], from_step=4)
    path = tmp_path / "quarantine.jsonl"
    path.write_bytes(path.read_bytes() + b"\xff\x00\xfe\n")
    with pytest.raises(CheckpointError, match=r"quarantine\.jsonl: line 2 needs a read error"):
        journal(tmp_path)


def test_without_quarantines_nothing_is_written(tmp_path: Path) -> None:
    log = journal(tmp_path, after=None)
    assert log.note(0, [error(g) for g in range(9)], from_step=4) == []
    assert list(tmp_path.iterdir()) == []


def test_no_errors_before_a_quarantine_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ErrorPolicy: needs quarantine_after of at least 1"):
        ErrorPolicy(quarantine_after=0)
