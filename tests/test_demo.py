"""The demo's claim on its folder: resumable from the first byte on, nobody else's overwritten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anlage import demo, samples
from anlage.demo import run_demo
from anlage.errors import AnlageError, BagError
from anlage.folder_lock import lock_folder
from anlage.slides.catalogue import Catalogue
from anlage.slides.indexing.index import index_slides


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


@pytest.fixture(scope="module")
def two_slides(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """One slide of train and one of test."""
    folder = tmp_path_factory.mktemp("two")
    paths = [samples.slides_folder() / f"{name}__HE.tiff" for name in ("hodgkin", "erosion")]
    found = index_slides(paths, folder / "slides.parquet", labels=samples.slides_labels())
    assert found.catalogue is not None
    return found.catalogue


def test_slide_encoders_train_on_train_and_are_measured_on_test(two_slides: Catalogue) -> None:
    config = demo._slide_config(two_slides, seed=3, steps=None)
    assert (config.seed, config.epochs, config.optimizer.warmup_epochs) == (3, 100, 5)
    assert (config.bags.split, config.held_out.split, config.held_out.share) == ("train", "test", 0)
    few = demo._slide_config(two_slides, seed=3, steps=2)
    assert (few.epochs, few.optimizer.warmup_epochs) == (2, 0.1)


def test_slides_without_a_split_are_all_trained_on_but_a_share(two_slides: Catalogue) -> None:
    config = demo._slide_config(two_slides.select(split="val"), seed=0, steps=None)
    assert (config.bags.split, config.held_out.split) == (None, None)
    assert config.held_out.share > 0


def test_bags_too_small_for_a_slide_encoder_end_nothing(
    two_slides: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BagError(tmp_path / "bags", "needs a bag to train on; got 1 bag, 1 too small.")

    monkeypatch.setattr("anlage.training.slide_pretraining.pretrain.pretrain_slides", refuse)
    (tmp_path / "slides.parquet").write_bytes(two_slides.path.read_bytes())
    assert demo._over_slides(tmp_path, two_slides, seed=0, steps=None) is None
    assert "no slide encoder" in caplog.text
    assert "needs a bag to train on" in caplog.text
