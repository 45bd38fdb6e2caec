"""What ``run.json`` says of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_catalogue import make_catalogue

from anlage.training.run_record import run_record
from micro_recipe import micro_config


@pytest.mark.parametrize(("labelled", "n_without"), [(True, 0), (False, 3)])
def test_slides_whose_patient_nobody_named_are_counted(
    tmp_path: Path, labelled: bool, n_without: int
) -> None:
    record = run_record(micro_config(), make_catalogue(tmp_path, labelled=labelled))
    assert len(record["patients"]) == 3
    assert record["n_without_patient"] == n_without
