"""Uploads by the real client to a hub on this machine: private, whole, and only when asked."""

import pytest
from huggingface_hub import constants
from stub_hub import stub_hub

from anlage.encoders.export.push import push_folder, refuse_push
from anlage.errors import EncoderError


@pytest.fixture
def export(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# x\n")
    (tmp_path / "model.safetensors").write_bytes(b"\0\1\2")
    return tmp_path


def test_a_folder_becomes_a_private_repository(export, monkeypatch) -> None:
    with stub_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        address = push_folder(export, "lab/encoder")
    assert hub.created == {"lab/encoder": "private"}
    assert hub.files == {path.name: path.read_bytes() for path in export.iterdir()}
    assert hub.tokens == {"Bearer hf_test"}
    assert address.endswith("2" * 40)


def test_public_only_when_asked(export, monkeypatch) -> None:
    with stub_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        push_folder(export, "lab/encoder", public=True)
    assert hub.created == {"lab/encoder": "public"}


def test_a_repository_that_is_public_already_gets_nothing(export, monkeypatch) -> None:
    with stub_hub({"lab/encoder": "public"}) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        with pytest.raises(EncoderError, match="is there and public"):
            push_folder(export, "lab/encoder")
    assert hub.files == {}


def test_a_private_one_that_is_there_is_updated(export, monkeypatch) -> None:
    with stub_hub({"lab/encoder": "private"}) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        push_folder(export, "lab/encoder")
    assert set(hub.files) == {"README.md", "model.safetensors"}


def test_a_refusal_of_the_hub_says_what_to_do(export, monkeypatch) -> None:
    with stub_hub(refuses=True) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        with pytest.raises(EncoderError, match=r"was not uploaded \(.*401.*HF_TOKEN.*is whole"):
            push_folder(export, "lab/encoder")


@pytest.mark.parametrize(
    ("repository", "provenance", "licence", "public", "says"),
    [
        ("encoder", {}, "mit", False, "form OWNER/NAME"),
        ("a/b/c", {}, "mit", False, "form OWNER/NAME"),
        ("lab/uni", {"gated": True, "repo": "MahmoodLab/UNI"}, "x", False, "consent.*Lab/UNI"),
        ("lab/own", {"init": {"made_by": {"gated": True}}}, "mit", False, "what began with them"),
        ("lab/encoder", {}, None, True, "public without a licence"),
    ],
)
def test_what_may_not_be_uploaded(repository, provenance, licence, public, says) -> None:
    with pytest.raises(EncoderError, match=says):
        refuse_push(repository, provenance, licence=licence, public=public)


def test_what_may_be_uploaded() -> None:
    refuse_push("lab/encoder.v-1_0", {"gated": False}, licence=None, public=False)
    refuse_push("lab/encoder", {}, licence="mit", public=True)
