"""The demo's claim on its folder: resumable from the first byte on, nobody else's overwritten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anlage import demo
from anlage.demo import run_demo
from anlage.errors import AnlageError


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
