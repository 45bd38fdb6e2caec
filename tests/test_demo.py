"""The demo's claim on its folder: resumable from the first byte on, nobody else's overwritten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anlage import demo
from anlage.demo import run_demo
from anlage.errors import AnlageError
from anlage.folder_lock import lock_folder


class ChainBeginsError(Exception):
    """The folder was taken; the chain would begin."""


@pytest.fixture(autouse=True)
def no_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise ChainBeginsError

    monkeypatch.setattr(demo, "_catalogue", stop)


def test_a_demo_killed_while_it_claimed_its_folder_goes_on(tmp_path: Path) -> None:
    """kill -9 between the first byte of demo.json and its rename leaves a part beside it."""
    (tmp_path / ".demo.json.0123abcd.part").write_text('{"vers')
    with pytest.raises(ChainBeginsError):
        run_demo(tmp_path, seed=3)
    assert json.loads((tmp_path / "demo.json").read_text())["seed"] == 3


def test_the_same_settings_go_on_and_others_are_refused(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ChainBeginsError):
            run_demo(tmp_path, steps=5)
    with pytest.raises(AnlageError, match="steps was 5, is now None"):
        run_demo(tmp_path)


def test_a_folder_with_anything_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(AnlageError, match="holds no demo"):
        run_demo(tmp_path)


def test_a_second_demo_in_a_folder_is_refused_while_the_first_runs(tmp_path: Path) -> None:
    with (
        lock_folder(tmp_path / "out", held=RuntimeError()),
        pytest.raises(AnlageError, match="another demo is running in this folder"),
    ):
        run_demo(tmp_path / "out")
    with pytest.raises(ChainBeginsError):
        run_demo(tmp_path / "out")


def test_a_demo_that_lost_the_race_for_its_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two demos of other settings find an empty folder at once; one lets the other begin."""
    claim = demo.claim_folder

    def claim_then_lose(out: Path, **settings: object) -> None:
        claim(out, **settings)
        monkeypatch.setattr(demo, "claim_folder", claim)
        (out / "demo.json").unlink()
        claim(out, **settings | {"seed": 8})

    monkeypatch.setattr(demo, "claim_folder", claim_then_lose)
    with pytest.raises(AnlageError, match="seed was 8, is now 0"):
        run_demo(tmp_path)
