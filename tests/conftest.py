"""What every test shares: one torch thread, a seeded generator, real data where present."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

torch.set_num_threads(1)
DATA = Path(os.environ.get("ANLAGE_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(20240501)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of larger real data (not part of the repository); set ANLAGE_DATA to name it."""
    if not (DATA / "MANIFEST.csv").is_file():
        pytest.skip("shared data not present")
    return DATA
