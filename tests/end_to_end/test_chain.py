"""The whole chain on bundled real slides: by five calls, by one command, killed and resumed."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest

from anlage import samples
from anlage.demo import run_demo
from anlage.errors import AnlageError
from micro_recipe import MICRO

EXAMPLE = Path(__file__).parents[2] / "examples" / "five_calls.py"
SLIDES = tuple(
    samples.slides_folder() / f"{name}.tiff"
    for name in ("glycogenstorage__HE", "helicobacterpylori__HE", "hodgkin__HE")
)


def five_calls() -> ModuleType:
    spec = importlib.util.spec_from_file_location("five_calls", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bags(folder: Path) -> dict[str, np.ndarray]:
    found = {}
    for path in sorted((folder / "bags").glob("*.h5")):
        with h5py.File(path) as file:
            found[path.stem] = file["features"][:]
    return found


def slide_embeddings(folder: Path) -> list[dict[str, object]]:
    return pq.read_table(folder / "slide_embeddings.parquet").to_pylist()


def scores(folder: Path) -> dict[str, object]:
    result = json.loads((folder / "scores" / "result.json").read_text())
    return {"scores": result["scores"], "comparisons": result["comparisons"]}


@pytest.mark.slow
def test_five_calls_make_a_report(tmp_path: Path) -> None:
    page = five_calls().main(tmp_path / "out", overrides=(*MICRO, "steps=5"))
    assert page.stat().st_size > 100_000
    made = bags(tmp_path / "out")
    assert len(made) == 19
    assert all(len(features) > 0 for features in made.values())


@pytest.mark.slow
def test_demo_killed_in_each_stage_gives_the_same_numbers(tmp_path: Path) -> None:
    """kill -9 in three stages; then the numbers are those of a demo that was never stopped."""
    straight = run_demo(tmp_path / "straight", steps=3, slides=SLIDES)
    assert straight.report is not None
    assert straight.summary

    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "anlage", "demo", "--out", str(killed), "--steps", "3"]
    for slide in SLIDES:
        command += ["--slides", str(slide)]
    signs = ("run/run.json", f"bags/{SLIDES[0].stem}.h5", "slide_run/run.json")
    for sign in (killed / name for name in signs):
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},  # as here, or sums differ in the last bits
        )
        deadline = time.monotonic() + 240
        while not sign.exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert process.poll() is None, "the demo ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (killed / "report.html").exists()
    resumed = run_demo(killed, steps=3, slides=SLIDES)
    assert resumed.report == killed / "report.html"
    assert scores(killed) == scores(tmp_path / "straight")
    mine, theirs = bags(killed), bags(tmp_path / "straight")
    assert mine.keys() == theirs.keys()
    assert all(np.array_equal(mine[name], theirs[name]) for name in mine)
    assert len(slide_embeddings(killed)) == len(SLIDES)
    assert slide_embeddings(killed) == slide_embeddings(tmp_path / "straight")

    with pytest.raises(AnlageError, match="seed was 0, is now 1"):
        run_demo(killed, steps=3, seed=1, slides=SLIDES)
