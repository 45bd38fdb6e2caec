"""A catalogue of three small slides, and bags of their tiles."""

from __future__ import annotations

from pathlib import Path

import pytest
from curated_bags import Bags, features_of
from small_catalogue import make_catalogue

from anlage.slides.catalogue import Catalogue


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """Slides a, b (train) and c (test), each of its own patient."""
    return make_catalogue(tmp_path_factory.mktemp("curated"))


@pytest.fixture
def bags(small: Catalogue, tmp_path: Path) -> Bags:
    """An empty folder for bags of ``small``."""
    return Bags(small, tmp_path / "bags")


@pytest.fixture
def pool_folder(bags: Bags) -> str:
    """48 tiles of each slide, of four kinds."""
    for number, name in enumerate("abc"):
        bags.write(name, features_of(number))
    return str(bags.folder)
