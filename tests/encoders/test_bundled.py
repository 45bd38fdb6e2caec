"""Encoders by name: the bundled one, a folder of that name, a name that nobody knows."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_encoder import make_encoder

from anlage import samples
from anlage.encoders.bundled import BUNDLED, encoder_folder
from anlage.encoders.folder import load_encoder, save_encoder
from anlage.errors import EncoderError


@pytest.mark.parametrize("named", ["anlage-tiny", Path("anlage-tiny")])
def test_a_bundled_one_is_its_folder_wherever_one_stands(named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert encoder_folder(named) == samples.samples_folder() / "encoders" / "anlage-tiny"
    assert (encoder_folder(named) / "config.json").is_file()


def test_a_path_is_itself_whether_it_is_there_or_not(tmp_path):
    assert encoder_folder(tmp_path) == tmp_path
    assert encoder_folder(tmp_path / "anlage-tiny") == tmp_path / "anlage-tiny"


def test_an_interrupted_replacement_is_found(tmp_path):
    (tmp_path / ".e.replaced").mkdir()
    assert encoder_folder(tmp_path / "e") == tmp_path / ".e.replaced"


def test_a_folder_of_bags_of_that_name_is_in_nobodys_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("anlage-tiny").mkdir()
    assert encoder_folder("anlage-tiny") == BUNDLED["anlage-tiny"]


def test_an_encoder_folder_of_that_name_is_not_guessed_at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encoder = make_encoder()
    save_encoder("anlage-tiny", encoder.model, encoder.config)
    with pytest.raises(EncoderError, match="anlage-tiny: is an encoder folder here, and the name"):
        load_encoder("anlage-tiny")
    assert load_encoder(tmp_path / "anlage-tiny").fingerprint == encoder.fingerprint


@pytest.mark.parametrize("named", ["anlage-tinny", "nowhere/encoder"])
def test_an_unknown_name_is_told_the_known_ones(named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EncoderError, match=f"{named}: no such encoder .*one of: anlage-tiny"):
        load_encoder(named)
