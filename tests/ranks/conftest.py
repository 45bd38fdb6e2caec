"""A catalogue of a few bundled slides, and the same with a slide that is gone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from anlage import samples
from anlage.slides.catalogue import Catalogue
from anlage.slides.indexing.index import index_slides

SLIDES = ("glycogenstorage__HE", "helicobacterpylori__HE", "hodgkin__HE")


@pytest.fixture(scope="session")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """Three bundled slides of training cases."""
    output = tmp_path_factory.mktemp("catalogue") / "slides.parquet"
    paths: list[Path | str] = [samples.slides_folder() / f"{name}.tiff" for name in SLIDES]
    found = index_slides(paths, output, labels=samples.slides_labels()).catalogue
    assert found is not None
    return found


@pytest.fixture
def with_a_slide_gone(tmp_path: Path) -> Path:
    """A catalogue of three slides, one of which was deleted after it was indexed."""
    copies: list[Path | str] = []
    for name in SLIDES:
        copies.append(tmp_path / f"{name}.tiff")
        shutil.copy(samples.slides_folder() / f"{name}.tiff", copies[-1])
    assert index_slides(copies, tmp_path / "slides.parquet").catalogue is not None
    Path(copies[0]).unlink()
    return tmp_path / "slides.parquet"
