"""Weight files are read without running them; what is damaged or more than weights is named."""

import argparse
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from anlage.encoders.weight_files import (
    as_float32,
    file_sha256,
    read_weight_file,
    state_dict_of,
)
from anlage.errors import EncoderError

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)}


def written(path: Path, content: object) -> Path:
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=path.suffix != ".bin")
    return path


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.pt", "w.bin"])
def test_what_was_written_is_read(tmp_path, name):
    path = written(tmp_path / name, TENSORS)
    torch.testing.assert_close(read_weight_file(path), TENSORS, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.bin"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.4, 0.7, 0.95])
def test_a_truncated_file_is_named(tmp_path, name, share):
    path = written(tmp_path / name, TENSORS)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(EncoderError, match=r"is not a whole (safetensors|torch) file") as refusal:
        read_weight_file(path)
    assert refusal.value.path == str(path)


class Stranger:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("opened",)


@pytest.mark.parametrize("name", ["w.pth", "w.bin"])
def test_a_pickle_that_would_run_code_is_refused_and_does_not(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path / name, {"a": Stranger()})
    with pytest.raises(EncoderError, match=r"holds a \w+\.mkdir beside tensors"):
        read_weight_file(path)
    assert not (tmp_path / "opened").exists()


def test_a_class_beside_the_weights_is_named_with_the_remedy(tmp_path):
    path = written(tmp_path / "w.pth", {"teacher": TENSORS, "args": argparse.Namespace(lr=1)})
    with pytest.raises(EncoderError, match=r"holds a argparse\.Namespace.*save its state dict"):
        read_weight_file(path)


def test_what_is_no_weight_file_is_refused(tmp_path):
    with pytest.raises(EncoderError, match="no such weight file"):
        read_weight_file(tmp_path / "none.pth")
    with pytest.raises(EncoderError, match=r"needs a name that ends in \.safetensors"):
        read_weight_file(tmp_path / "w.npz")
    with pytest.raises(EncoderError, match="needs a dict of tensors; it holds a list"):
        read_weight_file(written(tmp_path / "w.pt", [1, 2]))
    (tmp_path / "text.pth").write_text("weights\n")
    with pytest.raises(EncoderError, match="is not a whole torch file"):
        read_weight_file(tmp_path / "text.pth")
    (tmp_path / "p.pth").write_bytes(pickle.dumps({"a": 1}, protocol=2))
    with pytest.raises(EncoderError, match="is not a whole torch file"):
        read_weight_file(tmp_path / "p.pth")


@pytest.mark.parametrize(
    ("stored", "key"),
    [
        (TENSORS, ""),
        ({"state_dict": TENSORS, "epoch": 3}, "state_dict"),
        ({"student": {"a": torch.zeros(1)}, "teacher": TENSORS, "epoch": 3}, "teacher"),
        ({"model": TENSORS, "optimizer": {}}, "model"),
    ],
)
def test_the_state_dict_is_found(stored, key):
    assert state_dict_of(stored, path="p") == (TENSORS, key)


@pytest.mark.parametrize(
    ("stored", "says"),
    [({"epoch": 3}, "it holds 'epoch'"), ({}, "nothing"), ({"model": {"x": None}}, "holds 'x'")],
)
def test_a_file_without_a_state_dict_is_refused(stored, says):
    with pytest.raises(EncoderError, match=says):
        state_dict_of(stored, path="p")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_copies_are_float32_and_do_not_belong_to_the_file(tmp_path, dtype):
    path = written(tmp_path / "w.pth", {"a": torch.ones(3, dtype=dtype)})
    stored = read_weight_file(path)
    copies = as_float32(stored, path=path)
    copies["a"].mul_(2)
    assert copies["a"].dtype == torch.float32
    assert copies["a"].tolist() == [2.0, 2.0, 2.0]
    assert stored["a"].tolist() == [1.0, 1.0, 1.0]


def test_sha256_of_a_file(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert file_sha256(tmp_path / "x").startswith("ba7816bf8f01cfea414140de5dae2223")
