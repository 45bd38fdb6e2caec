"""`anlage bags` and `anlage embed slides`: what they print, and the codes they end with."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from peer_outputs import write_trident
from small_slide_encoder import make_slide_encoder
from some_bags import make_bag

from anlage.bags.store import list_bags, read_bag, write_bag
from anlage.cli import app, main
from anlage.cli.application import named_output
from anlage.encoders.folder import load_encoder
from anlage.encoders.slide_encoder import save_slide_encoder
from anlage.samples import slides_folder
from anlage.slides.indexing.index import index_slides

SLIDE = slides_folder() / "hodgkin__HE.tiff"


class Run(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


Anlage = Callable[..., Run]


@pytest.fixture
def anlage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Anlage]:
    """The command line, in this process: a new one takes seconds to import what is here already."""
    log = logging.getLogger("anlage")
    handlers, level = log.handlers, log.level

    def run(*arguments: str | Path) -> Run:
        monkeypatch.setattr(sys, "argv", ["anlage", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        told = capsys.readouterr()
        return Run(int(end.value.code or 0), told.out, told.err)

    yield run
    log.handlers, log.level = handlers, level


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, slide_id in enumerate("ab"):
        write_bag(tmp_path / "bags" / f"{slide_id}.h5", make_bag(slide_id, seed=number))
    return tmp_path / "bags"


def test_list_and_verify(anlage: Anlage, folder: Path) -> None:
    listed = anlage("bags", "list", folder)
    assert listed.returncode == 0, listed.stderr
    assert "a: 50 tiles x 12, anlage-tiny eeeeeeeeeeee, 224 px at 0.5 um/px" in listed.stdout
    assert "2 bags, 100 tiles" in listed.stdout
    assert json.loads(anlage("bags", "list", folder, "--json").stdout)["n_tiles"] == 100
    good = anlage("bags", "verify", folder)
    assert (good.returncode, good.stdout) == (0, "2 bags read, 100 tiles; 0 findings\n")
    (folder / "b.h5").write_bytes((folder / "b.h5").read_bytes()[:2000])
    bad = anlage("bags", "verify", folder)
    assert bad.returncode == 3
    assert bad.stdout.startswith(f"damaged: {folder / 'b.h5'}: not a whole HDF5 file")
    findings = json.loads(anlage("bags", "verify", folder, "--json").stdout)["findings"]
    assert [finding["kind"] for finding in findings] == ["damaged"]
    assert anlage("bags", "list", folder).returncode == 3


def test_convert_there_and_back(anlage: Anlage, tmp_path: Path, folder: Path) -> None:
    there = anlage("bags", "convert", folder, "--to", "stamp", "-o", tmp_path / "stamp")
    assert there.returncode == 0, there.stderr
    assert "2 bags converted, 0 refused" in there.stdout
    (tmp_path / "stamp" / "b.h5").write_bytes(b"no")
    back = anlage("bags", "convert", tmp_path / "stamp", "--to", "zarr", "-o", tmp_path / "zarr")
    assert back.returncode == 3
    assert "refused: " in back.stdout
    assert list(list_bags(tmp_path / "zarr")) == ["a"]
    (tmp_path / "stamp" / "a.h5").unlink()
    none = anlage("bags", "convert", tmp_path / "stamp", "--to", "zarr", "-o", tmp_path / "zarr")
    assert none.returncode == 1
    unknown = anlage("bags", "convert", folder, "--to", "npz", "-o", tmp_path / "npz")
    assert unknown.returncode == 2


def test_embed_slides(anlage: Anlage, tmp_path: Path, folder: Path) -> None:
    (tmp_path / "who.csv").write_text("slide_id,patient_id\na,p\nb,p\n")
    output = tmp_path / "slides.parquet"
    command = ("embed", "slides", "--bags", folder, "-o", output)
    done = anlage(*command, "--patients", tmp_path / "who.csv", "--pooling", "mean+std")
    assert done.returncode == 0, done.stderr
    assert f"2 slides: {output}" in done.stdout
    assert "1 patients: " in done.stdout
    write_bag(folder / "c.h5", make_bag("c", 0))
    with_empty = anlage(*command)
    assert with_empty.returncode == 3
    assert "empty: c: its bag holds no tile" in with_empty.stdout


def test_embed_slides_by_a_slide_encoder(anlage: Anlage, tmp_path: Path, folder: Path) -> None:
    encoder = make_slide_encoder()
    save_slide_encoder(tmp_path / "encoder", encoder.network, encoder.config)
    output = tmp_path / "slides.parquet"
    command = ("embed", "slides", "--bags", folder, "-o", output, "--encoder")
    done = anlage(*command, tmp_path / "encoder", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert f"2 slides: {output}" in done.stdout
    (folder / "a.h5").write_bytes(b"no")
    again = anlage(*command, tmp_path / "encoder")
    assert again.returncode == 3
    assert f"refused: {folder / 'a.h5'}" in again.stdout
    assert f"1 slides (1 of an earlier run): {output}" in again.stdout
    assert anlage(*command, tmp_path / "nowhere").returncode == 1
    both = anlage(*command, tmp_path / "encoder", "--pooling", "mean")
    assert both.returncode == 2
    assert "--pooling mean is instead of an encoder" in " ".join(both.stderr.split())
    no_half = anlage(*command, tmp_path / "encoder", "--device", "cpu", "--precision", "fp16")
    assert no_half.returncode == 2
    assert "got 'fp16' on cpu" in " ".join(no_half.stderr.split())
    pooled = anlage(*command[:-1], "--precision", "bf16")
    assert pooled.returncode == 2
    assert "are for an --encoder" in " ".join(pooled.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("embed", "slides", "--bags", "b", "-o", "s3://b/x.parquet"), "the URL s3:/b/x.parquet"),
        (("embed", "slides", "--bags", "b", "-o", "x.csv"), "ends in .parquet"),
        (("explain", "i.png", "--encoder", "e", "-o", "gs://b/x"), "the URL gs:/b/x"),
        (("export", "e", "s3://b/x", "--to", "timm"), "the URL s3:/b/x"),
        (("encoders", "fetch", "uni", "--to", "s3://b/x"), "the URL s3:/b/x"),
        (("bags", "convert", "b", "--to", "clam", "-o", ""), "got an empty name"),
        (("bags", "convert", "b", "--to", "zarr", "-o", "s3:/b/x"), "s3://BUCKET/FOLDER; got s3:/"),
        (("bags", "convert", "b", "--to", "zarr", "-o", "foo://b/x"), "s3://BUCKET/FOLDER; got"),
        (("bags", "adopt", "b", "--slides", "c.parquet", "-o", ""), "got an empty name"),
    ],
)
def test_an_output_that_cannot_be_meant_is_wrong_usage(
    arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        app(list(arguments))
    assert end.value.code == 2
    assert says in " ".join(capsys.readouterr().err.split())


def test_the_last_slash_of_a_url_is_not_part_of_the_output() -> None:
    assert named_output("s3://bucket/a b//") == "s3://bucket/a b"
    assert named_output("folder/") == "folder/"


def test_adopt(anlage: Anlage, tmp_path: Path) -> None:
    write_trident(tmp_path / "job", [SLIDE], load_encoder("anlage-tiny"), tile_px=256)
    index_slides([str(SLIDE)], tmp_path / "slides.parquet")
    command = ("bags", "adopt", tmp_path / "job", "--slides", tmp_path / "slides.parquet")
    done = anlage(*command, "-o", tmp_path / "bags", "--encoder", "anlage-tiny", "--check", "5")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("they agree: cosine median 0.999")
    assert "1 bags of TRIDENT's written" in done.stdout
    assert len(read_bag(tmp_path / "bags" / "hodgkin__HE.h5").coords) == 12
    missing = anlage("bags", "adopt", tmp_path, *command[3:], "-o", tmp_path / "other")
    assert missing.returncode == 1
    assert "neither features_* (TRIDENT)" in missing.stderr


def test_an_output_that_cannot_be_written(anlage: Anlage, tmp_path: Path, folder: Path) -> None:
    (tmp_path / "file").write_text("")
    for target in ("hdf5", "zarr", "clam", "stamp", "parquet", "anndata"):
        run = anlage("bags", "convert", folder, "--to", target, "-o", tmp_path / "file" / "out")
        assert run.returncode == 1, (target, run.stdout, run.stderr)
        assert "OSError: " in run.stderr or "NotADirectoryError: " in run.stderr, run.stderr
        assert "Traceback" not in run.stderr
