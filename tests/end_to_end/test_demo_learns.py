"""The demo's pretraining learns something that holds on tiles from elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from anlage.demo import run_demo
from anlage.evaluation.evaluate import evaluate_encoder


@pytest.mark.long
def test_demo_beats_its_untrained_network_on_lc25000(tmp_path: Path, shared_data: Path) -> None:
    """KNN over the group-safe folds; the paired bootstrap over groups excludes 0."""
    run_demo(tmp_path / "demo")
    tiles = shared_data / "tiles" / "lc25000_mini" / "labels.csv"
    result = evaluate_encoder(tmp_path / "demo" / "run" / "encoder", tiles, tmp_path / "scores")
    gain = next(c for c in result.comparisons if (c.floor, c.probe) == ("untrained", "knn"))
    assert gain.difference.n_groups > 100
    assert gain.difference.low > 0
