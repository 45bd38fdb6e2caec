"""The command line: light to start, plain errors, exit codes that say what happened."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_catalogue import write_slide
from small_encoder import make_encoder

from anlage import __version__, samples
from anlage.cli import main
from anlage.encoders.folder import save_encoder
from micro_recipe import MICRO

HEAVY = {
    *("torch", "numpy", "pyarrow", "sklearn", "cv2", "openslide", "h5py", "jinja2", "PIL", "zarr"),
}
SOME_SLIDES = ("hodgkin__HE", "erosion__HE")
COMMANDS = [
    *((), ("demo",), ("index",), ("pretrain",), ("pretrain", "tile"), ("pretrain", "slide")),
    *(
        ("embed",),
        ("embed", "tiles"),
        ("embed", "slides"),
        ("evaluate",),
        ("report",),
        ("doctor",),
        ("bench",),
        ("bench", "io"),
        ("masks",),
    ),
    *(("masks", "show"), ("masks", "export"), ("import-run",), ("export",), ("explain",)),
    *(("bags", name) for name in ("list", "verify", "convert", "adopt")),
]


def anlage(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "anlage", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "100"},
    )


def test_help_of_every_command_imports_nothing_heavy() -> None:
    program = (
        "import sys; from anlage.cli import app\n"
        f"for command in {COMMANDS!r}:\n"
        "    try: app([*command, '--help'])\n"
        "    except SystemExit as end: assert end.code == 0, command\n"
        f"loaded = {HEAVY!r} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("Usage:") == len(COMMANDS)


def test_version() -> None:
    assert anlage("--version").stdout.strip() == f"anlage {__version__}"


def test_wrong_usage_is_two(tmp_path: Path) -> None:
    assert anlage("index").returncode == 2
    run = anlage("pretrain", "tile", "--recipe", "tyni", "--slides", "x", "--run", tmp_path / "r")
    assert run.returncode == 2
    assert "known recipes are" in run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "r").exists()


def test_index_names_what_it_refuses_and_ends_with_three(tmp_path: Path) -> None:
    folder = tmp_path / "slides"
    folder.mkdir()
    real = samples.slides_folder() / "hodgkin__HE.tiff"
    (folder / real.name).write_bytes(real.read_bytes())
    (folder / "empty.svs").touch()
    (folder / "text.svs").write_text("this is not a slide")
    (folder / "cut.tiff").write_bytes(real.read_bytes()[: real.stat().st_size // 2])
    run = anlage("index", folder, "-o", tmp_path / "slides.parquet")
    assert run.returncode == 3, run.stderr
    for name in ("empty.svs", "text.svs", "cut.tiff"):
        assert sum(name in line for line in run.stdout.splitlines()) == 1, name
    assert "1 slides in" in run.stdout
    assert "3 refused" in run.stdout
    assert "Traceback" not in run.stderr
    assert (tmp_path / "slides.parquet").exists()


@pytest.mark.slow
def test_index_adds_to_a_catalogue(tmp_path: Path) -> None:
    first, second = (samples.slides_folder() / f"{name}.tiff" for name in SOME_SLIDES)
    output = tmp_path / "slides.parquet"
    assert anlage("index", first, "-o", output).returncode == 0
    run = anlage("index", second, "-o", output, "--add", "--workers", 1)
    assert run.returncode == 0, run.stderr
    assert f"2 slides in {output}, 0 refused; 1 read now" in run.stdout.replace("\n", "")
    run = anlage("index", second, "-o", output, "--tissue", "hsf")
    assert run.returncode == 1
    assert "is no tissue method" in run.stderr


def test_index_without_a_usable_slide_says_that_nothing_was_written(tmp_path: Path) -> None:
    (tmp_path / "empty.svs").touch()
    run = anlage("index", tmp_path, "-o", tmp_path / "slides.parquet")
    assert run.returncode == 1
    assert "nothing written, 1 refused" in run.stdout
    assert not (tmp_path / "slides.parquet").exists()


def test_a_missing_catalogue_is_one_line_and_one(tmp_path: Path) -> None:
    missing = tmp_path / "none.parquet"
    run = anlage("embed", "tiles", "--encoder", tmp_path, "--slides", missing, "-o", tmp_path / "b")
    assert run.returncode == 1
    assert len(run.stderr.strip().splitlines()) == 1
    assert "CatalogueError" in run.stderr


def test_doctor_ends_with_one_if_a_slide_cannot_be_read(tmp_path: Path) -> None:
    real = samples.slides_folder() / "hodgkin__HE.tiff"
    run = anlage("doctor", real, "--json")
    assert run.returncode == 0, run.stdout + run.stderr
    told = json.loads(run.stdout)
    assert told["findings"][-1]["name"] == real.name
    (tmp_path / "empty.svs").touch()
    run = anlage("doctor", real, tmp_path / "empty.svs")
    assert run.returncode == 1
    assert "! empty.svs" in run.stdout
    assert "1 µm per pixel" in run.stdout
    assert "Traceback" not in run.stderr


def test_few_labelled_tiles_are_evaluated_with_fewer_neighbours(tmp_path: Path) -> None:
    encoder = make_encoder()
    save_encoder(tmp_path / "encoder", encoder.model, encoder.config)
    bundled = samples.organ_tiles()
    rows = list(csv.DictReader(bundled.open(encoding="utf-8")))
    cases = [sorted({r["case"] for r in rows if r["label"] == c})[:2] for c in ("colon", "liver")]
    lines = ["file,label,case"]
    for case in (*cases[0], *cases[1]):
        few = [row for row in rows if row["case"] == case][:3]
        lines += [f"{bundled.parent / row['file']},{row['label']},{case}" for row in few]
    (tmp_path / "few.csv").write_text("\n".join(lines))
    command = ("evaluate", "--encoder", tmp_path / "encoder", "--data", tmp_path / "few.csv")
    refused = anlage(*command, "-o", tmp_path / "scores")
    assert refused.returncode == 1
    assert "got k=20, and 9 tiles in split" in refused.stderr
    assert "--neighbours 9" in refused.stderr
    run = anlage(*command, "-o", tmp_path / "scores", "--neighbours", "9")
    assert run.returncode == 0, run.stderr
    assert json.loads((tmp_path / "scores" / "result.json").read_text())["settings"]["k"] == 9


def test_what_ended_a_run_stands_in_its_log_and_once_on_the_terminal(tmp_path: Path) -> None:
    missing = tmp_path / "none.parquet"
    run = anlage("pretrain", "tile", "--slides", missing, "--run", tmp_path / "run")
    assert run.returncode == 1
    assert run.stderr.count("CatalogueError") == 1
    assert "ERROR CatalogueError" in (tmp_path / "run" / "anlage.log").read_text()


def test_report_of_an_empty_folder_says_what_it_looked_for(tmp_path: Path) -> None:
    run = anlage("report", tmp_path)
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    assert str(tmp_path) in run.stderr


def test_demo_refuses_a_folder_that_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    run = anlage("demo", "--out", tmp_path)
    assert run.returncode == 1
    assert "holds no demo" in run.stderr
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("command", [c for c in COMMANDS if len(c) == 1], ids="-".join)
def test_help_is_one_screen(command: tuple[str, ...]) -> None:
    assert len(anlage(*command, "--help").stdout.splitlines()) < 45


@pytest.mark.parametrize(
    "arguments",
    [
        ("demo", "--seed", "-1"),
        ("demo", "--steps", "0"),
        ("evaluate", "--encoder", "e", "--data", "d", "-o", "o", "--seed", "4294967296"),
        ("evaluate", "--encoder", "e", "--data", "d", "-o", "o", "--neighbours", "0"),
        ("index", "slides", "-o", "slides.parquet", "--mask-mpp", "0"),
        ("bench", "io", "slides", "--mpp", "0"),
        ("bench", "io", "slides", "--rate", "0"),
        ("bench", "io", "slides", "--decode", "half"),
        ("bench", "io", "slides", "--threads", "100000"),
        ("bench", "io", "slides", "--per-region", "1000000"),
        ("embed", "tiles", "--encoder", "e", "--slides", "s", "-o", "o", "--threads", "100000"),
        ("pretrain", "tile", "--slides", "s", "--run", "r", "--threads", "100000"),
        ("embed", "tiles", "--encoder", "e", "--slides", "s", "-o", "o", "--colour", "lab"),
    ],
    ids=" ".join,
)
def test_numbers_out_of_range_are_wrong_usage(arguments: tuple[str, ...]) -> None:
    run = anlage(*arguments)
    assert run.returncode == 2
    assert "Invalid value for" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_wrong_recipe_is_told_once(tmp_path: Path) -> None:
    run = anlage("pretrain", "tile", "--slides", tmp_path, "--run", tmp_path, "--recipe", "nope")
    assert run.returncode == 2
    assert run.stderr.count("no such recipe") == 1


def test_an_output_below_a_file_is_one_line_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    run = anlage("index", tmp_path, "-o", tmp_path / "file" / "slides.parquet")
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    assert run.stderr.rstrip().endswith("Name another output.")
    assert (tmp_path / "file").read_text() == "mine"


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Outside the training loop, which turns the signal into a request, an interrupt is raised."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("anlage.report.write.write_report", interrupted)
    monkeypatch.setattr("anlage.cli.embedding.log_to", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["anlage", "report", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 130
    assert "run it again" in capsys.readouterr().err


def test_memory_that_ran_out_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def greedy(*_: object) -> None:
        torch.empty(2**60, dtype=torch.uint8)

    monkeypatch.setattr("anlage.report.write.write_report", greedy)
    monkeypatch.setattr("anlage.cli.embedding.log_to", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["anlage", "report", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    assert "smaller batches" in capsys.readouterr().err


@pytest.mark.slow
def test_slides_that_came_later_do_not_disturb_a_run(tmp_path: Path) -> None:
    """A run goes on with the slides it began with, even if --slides is a folder that grew."""
    folder, run_dir = tmp_path / "slides", tmp_path / "run"
    write_slide(folder / "a.tif")
    command = ("pretrain", "tile", "--slides", folder, "--run", run_dir)
    values = (*MICRO, "tiles.split=null", "steps=1")
    settings = [part for value in values for part in ("--set", value)]
    assert anlage(*command, *settings).returncode == 0
    indexed = (run_dir / "slides.parquet").read_bytes()
    write_slide(folder / "b.tif", seed=1)
    again = anlage(*command, *settings)
    assert again.returncode == 1
    assert "Add --resume" in again.stderr
    assert (run_dir / "slides.parquet").read_bytes() == indexed
    resumed = anlage(*command, *settings, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert (run_dir / "slides.parquet").read_bytes() == indexed
