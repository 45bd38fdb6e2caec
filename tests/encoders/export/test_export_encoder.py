"""Whole or not at all; nothing else is replaced; the card tells what is known."""

import pytest
import yaml
from small_encoder import make_encoder
from weighty_encoder import weighty_encoder

from anlage.encoders.export import to_safetensors
from anlage.encoders.export.export_encoder import export_encoder
from anlage.encoders.folder import load_encoder
from anlage.errors import EncoderError

PROVENANCE = {
    "recipe": "uni",
    "n_slides": 13,
    "patients": ["p1", "p2"],
    "licence": "CC-BY-4.0",
    "config": {"tiles": {"magnifications": {"0.5": 0.5, "1.0": 0.5}}},
    "versions": {"anlage": "9.9", "torch": "2.0"},
    "data": "a | b",
}


def card(folder):
    text = (folder / "README.md").read_text(encoding="utf-8")
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def test_the_card_says_what_is_known(tmp_path) -> None:
    encoder = weighty_encoder(provenance=PROVENANCE, dual_patch_norm=True)
    own_card = "---\nlicense: x\n---\n# Mine\n\n```\n# a comment\n```\n## Part\n"
    export_encoder(
        encoder, tmp_path / "mine", to="safetensors", scores=["linear 0.71"], own_card=own_card
    )
    head, body = card(tmp_path / "mine")
    assert head["license"] == "cc-by-4.0"
    assert head["library_name"] == "anlage"
    for wanted in (
        "# mine\n",
        "| tile | 32 x 32 px, RGB |",
        "| resolution | 0.5 µm per pixel |",
        "| mean, of pixels in 0 to 1 | 0.7, 0.5, 0.6 |",
        "24 numbers: the class token",
        "| also | LayerScale, dual patch norm |",
        "| slides | 13 |",
        "| patients | 2 |",
        "0.5 (50%), 1.0 (50%)",
        r"| data | a \| b |",
        "linear 0.71",
        "Licence of the weights: CC-BY-4.0.",
        encoder.fingerprint,
        "\n### Mine",
        "\n# a comment",
        "\n#### Part",
    ):
        assert wanted in body, wanted
    assert "p1" not in body


def test_the_card_says_what_is_not_known(tmp_path) -> None:
    export_encoder(weighty_encoder(), tmp_path / "mine", to="safetensors")
    head, body = card(tmp_path / "mine")
    assert head["license"] == "unknown"
    assert "nobody stated one" in body
    assert "The encoder's folder does not say." in body
    assert "## Scores" not in body


def test_a_licence_that_hubs_do_not_know_is_named(tmp_path) -> None:
    export_encoder(weighty_encoder(), tmp_path / "mine", to="safetensors", licence="My Lab 1.0")
    head, _ = card(tmp_path / "mine")
    assert (head["license"], head["license_name"]) == ("other", "my-lab-1.0")


def test_an_earlier_export_is_replaced_by_another_format(tmp_path) -> None:
    export_encoder(weighty_encoder(), tmp_path / "out", to="safetensors")
    export_encoder(weighty_encoder(), tmp_path / "out", to="timm")
    assert card(tmp_path / "out")[0]["library_name"] == "timm"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch) -> None:
    encoder = weighty_encoder()
    export_encoder(encoder, tmp_path / "out", to="safetensors")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    other = make_encoder(seed=5)
    monkeypatch.setattr(to_safetensors, "load_encoder", lambda _: other)
    with pytest.raises(EncoderError, match="embeddings that differ"):
        export_encoder(encoder, tmp_path / "out", to="safetensors")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_encoder_folder_is_not_replaced_by_an_export(tmp_path) -> None:
    from anlage.encoders.folder import save_encoder

    encoder = make_encoder()
    save_encoder(tmp_path / "encoder", encoder.model, encoder.config)
    with pytest.raises(EncoderError, match="needs an empty folder or one of an earlier export"):
        export_encoder(encoder, tmp_path / "encoder", to="timm")
    load_encoder(tmp_path / "encoder")


def test_files_and_folders_of_others_are_not_replaced(tmp_path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(EncoderError, match="is a file"):
        export_encoder(weighty_encoder(), tmp_path / "file", to="timm")
    export_encoder(weighty_encoder(), tmp_path / "out", to="safetensors")
    (tmp_path / "out" / "more").mkdir()
    with pytest.raises(EncoderError, match="holds folders beside"):
        export_encoder(weighty_encoder(), tmp_path / "out", to="safetensors")


def test_an_unknown_format_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="needs one of timm, hf, onnx, safetensors; got 'tf'"):
        export_encoder(weighty_encoder(), tmp_path / "out", to="tf")
