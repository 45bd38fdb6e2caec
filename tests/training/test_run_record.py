"""What ``run.json`` says of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_catalogue import make_catalogue

from anlage.training import run_record as run_module
from anlage.training.run_record import compare_records, resumed_record, run_record
from micro_recipe import micro_config


@pytest.mark.parametrize(("labelled", "n_without"), [(True, 0), (False, 3)])
def test_slides_whose_patient_nobody_named_are_counted(
    tmp_path: Path, labelled: bool, n_without: int
) -> None:
    record = run_record(micro_config(), make_catalogue(tmp_path, labelled=labelled))
    assert len(record["patients"]) == 3
    assert record["n_without_patient"] == n_without


def test_of_very_many_slides_the_record_says_how_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = make_catalogue(tmp_path)
    listed = run_record(micro_config(), catalogue)
    assert listed["slides"] == {row.slide_id: row.fingerprint for row in catalogue.rows()}
    monkeypatch.setattr(run_module, "MOST_LISTED_SLIDES", 2)
    assert run_record(micro_config(), catalogue) == listed | {"slides": {}}
    assert listed["n_slides"] == 3


def test_a_resumed_run_names_what_changed_since_it_began(tmp_path: Path) -> None:
    began = run_record(micro_config(), make_catalogue(tmp_path))
    assert resumed_record(began, began, step=3) == began
    upgraded = began | {"versions": {"torch": "99"}}
    once = resumed_record(began, upgraded, step=3)
    assert {k: once[k] for k in began} == began
    assert [(e["step"], e["versions"]) for e in once["resumed"]] == [(3, {"torch": "99"})]
    assert resumed_record(once, upgraded, step=5) == once
    twice = resumed_record(once, began, step=7)
    assert [e["step"] for e in twice["resumed"]] == [3, 7]


def test_another_number_of_threads_is_told_on_resume(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = run_record(micro_config(), make_catalogue(tmp_path))
    assert record["machine"]["n_threads"] == torch.get_num_threads()
    caplog.clear()  # of what indexing said
    compare_records(tmp_path, old=record, new=record)
    assert not caplog.records
    other = record | {"machine": record["machine"] | {"n_threads": 7}}
    compare_records(tmp_path, old=record, new=other)
    assert "'n_threads': 7" in caplog.text
    assert "last bits" in caplog.text
