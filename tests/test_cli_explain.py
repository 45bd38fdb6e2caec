"""The command that explains, as a user types it: a picture, a place of a slide, wrong usage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_encoder import make_encoder
from typer.testing import CliRunner

from anlage import samples
from anlage.cli import app
from anlage.encoders.folder import save_encoder

RUN = CliRunner()
SLIDE = samples.slides_folder() / "hodgkin__HE.tiff"


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    made = make_encoder(mpp=2.0)
    save_encoder(tmp_path / "encoder", made.model, made.config)
    return tmp_path / "encoder"


def said(*arguments: str | Path, code: int = 0) -> str:
    result = RUN.invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


def test_a_picture_in_all_ways_at_all_sizes(encoder, tmp_path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (70, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "tile.png")
    out = tmp_path / "out"
    told = said("explain", tmp_path / "tile.png", "--encoder", encoder, "-o", out, "--px", "32,64")
    assert told.endswith(f"7 pictures: {out}\npage: {out / 'explain.html'}\n")
    assert "tile.png, 128 µm wide" in (out / "explain.html").read_text()
    assert Image.open(out / "field.png").size == (64, 64)


def test_a_place_of_a_slide_and_one_kind(encoder, tmp_path) -> None:
    out = tmp_path / "out"
    command = ["explain", SLIDE, "--encoder", encoder, "-o", out, "--at", "40,60", "--px", "32,96"]
    said(*command, "--rollout", "--mpp", "1.5")
    assert sorted(path.name for path in out.iterdir()) == [
        *("explain.html", "field.png", "rollout_0032px.png", "rollout_0096px.png"),
    ]
    assert "hodgkin__HE.tiff at 40,60, 144 µm wide" in (out / "explain.html").read_text()
    assert Image.open(out / "field.png").size == (96, 96)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--px", "33"], "8 px patch"),
        (["--px", "32,x"], "--px needs whole numbers"),
        (["--px", "0"], "from 1 to 8192; got 0"),
        (["--px", "32,1000000"], "from 1 to 8192; got 32,1000000"),
        (["--mpp", "1e9"], "less than or equal to 1000"),
        (["--at", "7"], "--at needs two numbers"),
        (["--at", "a,b"], "--at needs whole numbers"),
    ],
)
def test_wrong_usage_is_two_and_says_what_is_right(encoder, tmp_path, options, says) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "tile.png")
    picture = tmp_path / "tile.png"
    told = said("explain", picture, "--encoder", encoder, "-o", tmp_path / "out", *options, code=2)
    assert says in " ".join(told.split())
    assert not (tmp_path / "out").exists()
