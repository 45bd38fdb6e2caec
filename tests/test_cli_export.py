"""The command that exports, as a user types it: a run, a card with scores, an upload."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import constants
from stub_hub import stub_hub
from typer.testing import CliRunner
from weighty_encoder import weighty_encoder

from anlage.cli import app
from anlage.encoders.folder import load_encoder, save_encoder
from anlage.errors import EncoderError

RUN = CliRunner()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    encoder = weighty_encoder(provenance={"recipe": "uni", "patients": ["Jane"]})
    save_encoder(tmp_path / "run" / "encoder", encoder.model, encoder.config)
    return tmp_path / "run"


def said(*arguments: str | Path, code: int = 0) -> str:
    result = RUN.invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


def test_a_run_is_exported_by_its_encoder(run, tmp_path) -> None:
    told = said("export", run, tmp_path / "out", "--to", "timm", "--licence", "mit")
    assert "Opened with timm" in told
    assert f"export: {tmp_path / 'out'}" in told
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: mit" in card
    assert "| recipe | uni |" in card
    assert "Jane" not in card


def test_a_bundled_encoder_is_exported_by_name_with_its_card_and_licence(tmp_path) -> None:
    said("export", "anlage-tiny", tmp_path / "out", "--to", "safetensors")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "## The card of the encoder's own folder" in card
    patients = load_encoder("anlage-tiny").config.provenance["patients"]
    told = json.loads((tmp_path / "out" / "config.json").read_text())["provenance"]
    assert told["n_patients"] == len(patients) > 1


def test_scores_of_this_encoder_stand_on_the_card(run, tmp_path, monkeypatch) -> None:
    class Result:
        encoder_fingerprint = load_encoder(run / "encoder").fingerprint

        def summary(self) -> list[str]:
            return ["organs: 90 tiles", "encoder linear 0.71", "per case, linear", "  Jane 0.5"]

    (run / "scores").mkdir()
    (run / "scores" / "result.json").write_text("{}")
    monkeypatch.setattr("anlage.evaluation.result.read_result", lambda _: Result())
    said("export", run, tmp_path / "out", "--to", "safetensors")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "organs: 90 tiles\nencoder linear 0.71\n```" in card
    assert "Jane" not in card
    Result.encoder_fingerprint = "of another encoder"
    said("export", run, tmp_path / "out", "--to", "safetensors")
    assert "encoder linear 0.71" not in (tmp_path / "out" / "README.md").read_text()


def test_an_upload_happens_only_when_typed_and_is_private(run, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    with stub_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        said("export", run, tmp_path / "out", "--to", "safetensors")
        assert hub.created == {}
        told = said("export", run, tmp_path / "out", "--to", "safetensors", "--push", "lab/x")
    assert hub.created == {"lab/x": "private"}
    assert set(hub.files) == {"README.md", "config.json", "model.safetensors"}
    assert f"uploaded: {hub.url}" in told


def test_what_may_not_be_uploaded_is_refused_before_anything_is_written(run, tmp_path) -> None:
    command = ["export", run, tmp_path / "out", "--to", "timm"]
    with pytest.raises(EncoderError, match="public without a licence"):
        said(*command, "--push", "lab/x", "--public")
    assert "needs --push" in said(*command, "--public", code=2)
    assert not (tmp_path / "out").exists()


def test_a_refused_encoder_leaves_nothing(tmp_path) -> None:
    encoder = weighty_encoder(dual_patch_norm=True)
    save_encoder(tmp_path / "encoder", encoder.model, encoder.config)
    with pytest.raises(EncoderError, match="dual patch norm"):
        said("export", tmp_path / "encoder", tmp_path / "out", "--to", "timm")
    assert [path.name for path in tmp_path.iterdir()] == ["encoder"]
