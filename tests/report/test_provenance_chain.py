"""A broken link shows, and only that link."""

from __future__ import annotations

import json
import shutil

import h5py
import pytest
from small_encoder import make_config, make_encoder

from anlage.encoders.folder import save_encoder
from anlage.report.contents import open_contents
from anlage.report.provenance_chain import provenance_chain
from anlage.report.verdicts import verdicts
from anlage.report.write import write_report
from anlage.slides.catalogue import Catalogue

pytestmark = pytest.mark.slow


def broken(folder):
    """Titles and texts of the checks that do not hold."""
    chain = provenance_chain(open_contents(folder))
    return [(link.title, c.text) for link in chain for c in link.checks if c.holds is False]


def test_an_untouched_chain_holds(made_chain):
    chain = provenance_chain(open_contents(made_chain))
    assert [link.title for link in chain] == [
        *("3 slides", "Catalogue", "Pretraining run", "Tile encoder", "Tile embeddings", "Scores")
    ]
    assert all(check.holds for link in chain for check in link.checks)
    assert all(link.checks for link in chain)


def test_a_bag_changed_by_hand(chain):
    with h5py.File(chain / "bags" / "erosion__HE.h5", "r+") as file:
        file["features"][0, 0] += 1
    [(title, text)] = broken(chain)
    assert title == "Tile embeddings"
    assert "2 of 3 bags match their own checksum; not so: erosion__HE" in text
    html = write_report(chain).read_text()
    assert "✗" in html
    assert "The chain of provenance is broken at: tile embeddings." in html


def test_a_bag_of_another_encoder(chain):
    with h5py.File(chain / "bags" / "erosion__HE.h5", "r+") as file:
        file.attrs["encoder_fingerprint"] = "0" * 64
    assert broken(chain) == [
        ("Tile embeddings", "2 of 3 were made by this encoder; not so: erosion__HE")
    ]


def test_a_bag_of_another_slide(chain):
    with h5py.File(chain / "bags" / "erosion__HE.h5", "r+") as file:
        file.attrs["slide_fingerprint"] = "0" * 64
    [(_, text)] = broken(chain)
    assert text == "2 of 3 were made from the slides of the catalogue; not so: erosion__HE"


def test_another_encoder_in_its_place(chain):
    shutil.rmtree(chain / "run" / "encoder")
    save_encoder(chain / "run" / "encoder", make_encoder().model, make_config())
    titles = [title for title, _ in broken(chain)]
    assert titles == ["Tile encoder", "Tile embeddings", "Scores"]


def test_damaged_weights(chain):
    path = chain / "run" / "encoder" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\1\1")
    assert broken(chain)[0][0] == "Cannot be read"


def test_a_slide_file_that_changed(chain, tmp_path, monkeypatch):
    other = tmp_path / "other.tiff"
    other.write_bytes(b"something else")
    location_of = Catalogue.location
    monkeypatch.setattr(
        Catalogue,
        "location",
        lambda self, name: str(other) if name == "erosion__HE" else location_of(self, name),
    )
    [(title, text)] = broken(chain)
    assert title == "3 slides"
    assert text.endswith("changed: erosion__HE")


def test_a_run_on_other_slides(chain):
    path = chain / "run" / "run.json"
    text = path.read_text()
    row = Catalogue.open(chain / "slides.parquet").row("hodgkin__HE")
    path.write_text(text.replace(row.fingerprint, "f" * 64))
    titles = {title for title, _ in broken(chain)}
    assert titles == {"Pretraining run", "Tile encoder"}


def test_a_run_that_used_test_slides(chain):
    path = chain / "run" / "run.json"
    row = Catalogue.open(chain / "slides.parquet").row("erosion__HE")
    extra = f'"slides": {{"erosion__HE": "{row.fingerprint}", '
    path.write_text(path.read_text().replace('"slides": {', extra, 1))
    contents = open_contents(chain)
    lines = {v.text: v.kind for v in verdicts(contents, provenance_chain(contents))}
    said = "Pretraining used slides that are not of split=train: erosion__HE."
    assert lines[said] == "bad"


def test_bags_of_another_catalogue(chain):
    path = chain / "bags" / "embedding.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"catalogue_fingerprint": "0" * 64}))
    assert broken(chain) == [("Tile embeddings", "embedding.json names this catalogue")]


def test_predictions_of_another_result(chain):
    shutil.copy(chain / "slides.parquet", chain / "scores" / "predictions.parquet")
    [(title, text)] = broken(chain)
    assert title == "Scores"
    assert text.startswith("every tile's prediction")
