from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from small_catalogue import write_slide

from anlage.slides.indexing.examine import Examined, Task, TissueSettings, Unusable
from anlage.slides.indexing.examining import examine_all
from anlage.slides.indexing.found_slide import FoundSlide
from anlage.slides.indexing.index import index_slides


class Deadly(Task):
    """A slide that ends the process which opens it, as a decoder does that runs off its memory."""

    def __reduce__(self) -> tuple[Callable[[int], None], tuple[int]]:
        return signal.raise_signal, (signal.SIGSEGV,)


def task_of(file: Path, kind: type[Task] = Task) -> Task:
    return kind(FoundSlide(str(file), (str(file),)), file.stem, None)


@pytest.mark.slow
def test_a_slide_that_ends_its_process_costs_that_slide(tmp_path: Path) -> None:
    files = [write_slide(tmp_path / f"{i}.tif", seed=i) for i in range(4)]
    tasks = [task_of(file, Deadly if i == 1 else Task) for i, file in enumerate(files)]
    outcomes = dict(examine_all(tasks, TissueSettings(), workers=2))
    assert sorted(outcomes) == [0, 1, 2, 3]
    dead = outcomes.pop(1)
    assert isinstance(dead, Unusable)
    assert "the process that read it ended by SIGSEGV" in dead.reason
    assert all(isinstance(outcome, Examined) for outcome in outcomes.values())


@pytest.mark.slow
def test_processes_make_the_same_catalogue_as_threads(tmp_path: Path) -> None:
    for i, name in enumerate("dcba"):
        write_slide(tmp_path / f"{name}.tif", seed=i)
    (tmp_path / "bad.svs").touch()
    paths = [tmp_path / f"{name}.tif" for name in "dcba"] + [tmp_path / "bad.svs"]
    alone = index_slides(paths, tmp_path / "one.parquet")
    both = index_slides(paths, tmp_path / "two.parquet", workers=2)
    assert alone.catalogue is not None
    assert both.catalogue is not None
    assert both.catalogue.column("slide_id").to_pylist() == list("dcba")
    assert both.catalogue.fingerprint == alone.catalogue.fingerprint
    assert both.refused == alone.refused
    for name in "abcd":
        assert (both.catalogue.mask(name).mask == alone.catalogue.mask(name).mask).all()


def test_nothing_to_examine_starts_no_process() -> None:
    assert list(examine_all([], TissueSettings(), workers=2)) == []


def test_no_workers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs workers >= 1; got 0"):
        index_slides([tmp_path], tmp_path / "slides.parquet", workers=0)
