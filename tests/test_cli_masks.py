"""The commands about masks, as a user types them."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_catalogue import make_catalogue
from typer.testing import CliRunner

from anlage.cli import app
from anlage.errors import CatalogueError

RUN = CliRunner()


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    make_catalogue(tmp_path / "slides")
    return tmp_path / "slides" / "slides.parquet"


def said(*arguments: str | Path) -> str:
    result = RUN.invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_masks_are_shown_on_sheets(catalogue: Path, tmp_path: Path) -> None:
    told = said("masks", "show", catalogue, "-o", tmp_path / "look")
    assert told == f"3 masks on 1 sheets in {tmp_path / 'look'}\n"
    assert [f.name for f in (tmp_path / "look").iterdir()] == ["masks-0001-of-0001.png"]


def test_masks_are_exported_and_kept(catalogue: Path, tmp_path: Path) -> None:
    folder = tmp_path / "masks"
    told = said("masks", "export", catalogue, "-o", folder, "--format", "png")
    assert told == f"3 masks written to {folder}\n"
    told = said("masks", "export", catalogue, "-o", folder, "--format", "png")
    assert "0 masks written" in told
    assert "3 kept that were there" in told
    assert said("masks", "export", catalogue, "-o", folder, "--force").startswith("3 masks written")
    assert sorted(f.name for f in folder.iterdir()) == [
        *("a.geojson", "a.png", "b.geojson", "b.png", "c.geojson", "c.png"),
    ]


def test_a_missing_catalogue_and_a_wrong_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match="does not exist"):
        said("masks", "export", tmp_path / "none.parquet", "-o", tmp_path / "masks")
    wrong = RUN.invoke(app, ["masks", "export", "x.parquet", "-o", "masks", "--format", "svg"])
    assert wrong.exit_code == 2
