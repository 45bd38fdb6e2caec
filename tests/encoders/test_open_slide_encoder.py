"""One door to slide encoders: what each form of a name opens, and what is said of the others."""

import logging

import pytest
import torch
from official_slide_weights import bag_of, write_official_file
from small_slide_encoder import make_slide_encoder

from anlage.encoders import hub
from anlage.encoders import open_slide_encoder as door
from anlage.encoders.open_encoder import open_encoder
from anlage.encoders.open_slide_encoder import open_slide_encoder
from anlage.encoders.slide_encoder import save_slide_encoder
from anlage.encoders.slide_presets import SLIDE_PRESETS
from anlage.encoders.weight_files import file_sha256
from anlage.errors import DeviceError, EncoderError

NAME = "prov-gigapath-slide"


@pytest.fixture
def shallow(monkeypatch, tmp_path):
    """The preset one block deep and narrow, and its weight file."""
    preset = SLIDE_PRESETS[NAME]
    sizes = {"input_width": 24, "width": 32, "depth": 1}
    facts = preset.tile_encoder.model_copy(update={"width": 24})
    small = {"architecture": {**preset.architecture, **sizes}, "tile_encoder": facts}
    monkeypatch.setattr(door, "SLIDE_PRESETS", {NAME: preset.model_copy(update=small)})
    monkeypatch.setattr(door, "cached_file", lambda _: None)
    return write_official_file(tmp_path, **sizes)


def test_a_folder(tmp_path):
    encoder = make_slide_encoder()
    save_slide_encoder(tmp_path / "e", encoder.network, encoder.config)
    assert open_slide_encoder(tmp_path / "e").fingerprint == encoder.fingerprint
    assert open_slide_encoder(str(tmp_path / "e")).name == str(tmp_path / "e")


def test_a_preset_with_its_file(shallow, caplog):
    hub._tell_once.cache_clear()
    with caplog.at_level(logging.INFO, "anlage"):
        encoder = open_slide_encoder(f"{NAME}={shallow}")
    assert "Apache-2.0 with conditions; gated" in caplog.text
    assert encoder.config.provenance["file"] == shallow.name  # a folder tells of people
    assert encoder.config.provenance["sha256"] == file_sha256(shallow)
    assert encoder.config.provenance["preset"] == NAME
    features, cells = bag_of(60, input_width=24)
    assert encoder.embed(features, cells, [60]).shape == (1, 32)
    assert not encoder.network.training


def test_a_preset_saved_as_a_folder_is_the_same_encoder(shallow, tmp_path):
    encoder = open_slide_encoder(f"{NAME}={shallow}")
    save_slide_encoder(tmp_path / "saved", encoder.network, encoder.config)
    assert open_slide_encoder(tmp_path / "saved").fingerprint == encoder.fingerprint


def test_a_file_that_holds_code_is_refused(shallow):
    torch.save({"model": {}, "args": slice(1)}, shallow)
    with pytest.raises(EncoderError, match="beside tensors"):
        open_slide_encoder(f"{NAME}={shallow}")


def test_without_a_file_the_one_of_the_hub_is_taken(shallow, monkeypatch):
    def fetch_file(preset):
        assert (preset.repo, preset.files) == ("prov-gigapath/prov-gigapath", (shallow.name,))
        return hub.HubFile(shallow, shallow.name, "4f1e")

    monkeypatch.setattr(door, "fetch_file", fetch_file)
    found = open_slide_encoder(NAME).config.provenance
    assert (found["file"], found["revision"]) == ("slide_encoder.pth", "4f1e")


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("", "no such slide encoder"),
        ("prov-gigapath-slid", "Did you mean prov-gigapath-slide"),
        ("nowhere/encoder", "no such slide encoder folder or name. Name RUN/encoder"),
        (f"{NAME}=nowhere.pth", "no such weight file"),
        ("uni", "embeds tiles, not slides"),
    ],
)
def test_what_is_not_there(shallow, named, told):
    with pytest.raises(EncoderError, match=told):
        open_slide_encoder(named)


def test_to_embed_tiles_it_is_refused():
    with pytest.raises(EncoderError, match="embeds slides, not tiles. Name it to `embed slides`"):
        open_encoder(NAME)


def test_a_weight_file_alone(shallow):
    with pytest.raises(EncoderError, match=f"Say of which slide encoder: {NAME}="):
        open_slide_encoder(shallow)


def test_a_name_that_is_a_folder_too(shallow, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encoder = make_slide_encoder()
    save_slide_encoder(NAME, encoder.network, encoder.config)
    with pytest.raises(EncoderError, match="is a folder here, and the name of"):
        open_slide_encoder(NAME)


def test_a_device_that_is_not_there_is_told_before_a_download(shallow):
    with pytest.raises(DeviceError, match="is no device"):
        open_slide_encoder(NAME, device="gpu")
