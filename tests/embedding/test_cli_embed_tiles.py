"""``anlage embed tiles`` in this process: what it takes, says and ends with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from anlage.bags.store import read_bag
from anlage.cli.application import app
from anlage.cli.embed_tiles import _name_of
from anlage.errors import CatalogueError


@pytest.fixture
def embed(monkeypatch, capsys):
    """Run the command; gives its exit code and what it printed on either stream."""
    monkeypatch.setattr("anlage.cli.embed_tiles.log_to", lambda _: None)

    def run(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as end:
            app(["embed", "tiles", *map(str, arguments)])
        told = capsys.readouterr()
        return int(end.value.code or 0), told.out + told.err

    return run


def test_bags_and_the_code_that_says_that_one_is_empty(embed, catalogue, encoder_folder, tmp_path):
    command = ("--encoder", encoder_folder, "--slides", catalogue.path, "-o", tmp_path / "bags")
    code, told = embed(*command)
    assert code == 3
    assert "empty: bb: no tile holds enough tissue" in told
    assert "4 slides embedded (" in told
    again, told = embed(*command)
    assert again == 3  # the bag is still empty
    assert "0 slides embedded, 4 already there, 1 empty, 0 refused" in told


def test_without_anything_amiss_the_code_is_zero(embed, slides, encoder_folder, tmp_path):
    output, place = tmp_path / "bags", str(slides / "[ac].tif")
    settings = ("--overlap-px", 8, "--batch-size", 9, "--device", "cpu,cpu", "--precision", "fp32")
    code, told = embed("--encoder", encoder_folder, "--slides", place, "-o", output, *settings)
    assert (code, sorted(path.stem for path in output.glob("*.h5"))) == (0, ["a", "c"]), told
    assert read_bag(output / "a.h5").attributes.stride_px == 24


def test_several_encoders_get_folders_of_their_own(embed, catalogue, encoder_folder, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(encoder_folder, tmp_path / name / "encoder")
    encoders = ("--encoder", tmp_path / "one" / "encoder", "--encoder", tmp_path / "two/encoder")
    code, told = embed(*encoders, "--slides", catalogue.path, "-o", tmp_path / "bags")
    assert code == 3
    assert "one: 4 slides embedded" in told
    for name in ("one", "two"):
        assert (tmp_path / "bags" / name / "d.h5").exists()
        json.loads((tmp_path / "bags" / name / "embedding.json").read_text())
    twice = ("--encoder", tmp_path / "one" / "encoder", "--encoder", tmp_path / "one/encoder/")
    code, told = embed(*twice, "--slides", catalogue.path, "-o", tmp_path / "bags")
    assert code == 2
    assert "would both write to one/" in " ".join(told.split())


@pytest.mark.parametrize(
    ("encoder", "name"),
    [
        ("uni", "uni"),
        ("virchow2@1.0", "virchow2@1.0"),
        ("uni=/weights/pytorch_model.bin", "uni"),
        ("timm:vit_small_patch16_224@0.5", "timm-vit_small_patch16_224@0.5"),
        ("hf:owner/model@0.5", "hf-owner-model@0.5"),
        ("code.py:make", "code.py-make"),
    ],
)
def test_folders_are_named_after_encoders(encoder, name):
    assert _name_of(encoder) == name


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("--shard", "5/4"), "i from 1 to n"),
        (("--shard", "x"), "i from 1 to n"),
        (("--stride-px", "8", "--overlap-px", "8"), "not both; got (8, 8)."),
        (("--tile-px", "9" * 24), "Invalid value for"),
        (("--batch-size", "9" * 12), "Invalid value for"),
        (("-o", ""), "got an empty name"),
        (("--mpp", "0"), "Invalid value for"),
        (("--precision", "int8"), "Invalid value for"),
        (("--engine", "dask"), "Invalid value for"),
        (("--workers", "2"), "go with --engine ray"),
        (("--engine", "ray", "--workers", "0"), "Invalid value for"),
        (("--engine", "ray", "--encoder", "f"), "takes one --encoder; got 2"),
        (("--engine", "ray", "--device", "cpu,cpu"), "takes one --device for each worker"),
    ],
)
def test_wrong_usage_is_two(embed, catalogue, tmp_path, settings, says):
    command = ("--encoder", "e", "--slides", catalogue.path, "-o", tmp_path / "bags")
    code, told = embed(*command, *settings)
    assert code == 2
    assert says in " ".join(told.replace("│", " ").split())
    assert not (tmp_path / "bags").exists()


def test_an_overlap_that_only_the_encoder_tells_is_too_large_is_wrong_usage(
    embed, catalogue, encoder_folder, tmp_path
):
    command = ("--encoder", encoder_folder, "--slides", catalogue.path, "-o", tmp_path / "bags")
    code, told = embed(*command, "--overlap-px", "32")
    assert code == 2
    assert "below the tile's edge of 32; got 32" in told
    assert not list((tmp_path / "bags").glob("*.h5"))


def test_shards_take_a_catalogue_alone(embed, slides, tmp_path):
    code, told = embed("--encoder", "e", "--slides", slides, "-o", tmp_path / "b", "--shard", "1/2")
    assert code == 2
    assert "takes a catalogue" in told


def test_urls_take_a_catalogue_alone(embed, slides):
    code, told = embed("--encoder", "e", "--slides", slides, "-o", "s3://bags/study")
    assert code == 2
    assert "takes a catalogue" in told


def test_a_catalogue_elsewhere_or_with_other_masks_is_refused(
    catalogue, slides, encoder_folder, tmp_path
):
    from anlage.slides.indexing.index import catalogue_of

    with pytest.raises(CatalogueError, match=r"s3://b/c.parquet: is a URL; .* Copy it here"):
        catalogue_of("s3://b/c.parquet", folder=tmp_path)
    with pytest.raises(CatalogueError, match="masks made by otsu; asked for hsv"):
        catalogue_of(catalogue.path, folder=tmp_path, tissue="hsv")
    assert len(catalogue_of(catalogue.path, folder=tmp_path, tissue="otsu")[0]) == 5
    found, _ = catalogue_of(str(slides), folder=tmp_path / "hsv", tissue="hsv")
    assert set(found.column("tissue_method").to_pylist()) == {"hsv"}


def test_an_encoder_that_is_broken_is_told_before_slides_are_read(
    embed, catalogue, encoder_folder, tmp_path
):
    from anlage.errors import EncoderError

    weights = next(Path(encoder_folder).glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    command = ["--encoder", encoder_folder, "--slides", catalogue.path, "-o", tmp_path / "bags"]
    with pytest.raises(EncoderError):
        app(["embed", "tiles", *map(str, command)])
    assert not list((tmp_path / "bags").glob("*.h5"))
