"""A catalogue of a few bundled slides."""

from __future__ import annotations

from pathlib import Path

import pytest

from anlage import samples
from anlage.slides.catalogue import Catalogue
from anlage.slides.indexing.index import index_slides

SLIDES = ("glycogenstorage__HE", "helicobacterpylori__HE", "hodgkin__HE", "erosion__HE")


@pytest.fixture(scope="session")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """Four bundled slides: three to train on, one of the test split."""
    output = tmp_path_factory.mktemp("catalogue") / "slides.parquet"
    paths: list[Path | str] = [samples.slides_folder() / f"{name}.tiff" for name in SLIDES]
    result = index_slides(paths, output, labels=samples.slides_labels())
    assert result.catalogue is not None
    return result.catalogue
