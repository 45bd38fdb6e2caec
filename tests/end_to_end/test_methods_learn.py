"""Methods beat their untrained network on tiles from elsewhere; benchmarks/methods_on_slides.py.

The runs take some 8 minutes an arm on one core, those of DINO alone an hour: it needs nine times
the tiles (docs/experiments.md).
"""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from anlage.evaluation.labelled_tiles import LabelledTiles
from anlage.probes.metrics.classification import BALANCED_ACCURACY
from anlage.slides.indexing.index import index_slides

TEST_CASES = ("erosion", "melanosiscoli", "celiac-disease", "cholesterolpolyp", "liver-hemangioma")


@pytest.fixture(scope="module")
def study():
    path = Path(__file__).parents[2] / "benchmarks" / "methods_on_slides.py"
    spec = importlib.util.spec_from_file_location("methods_on_slides", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["methods_on_slides"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["methods_on_slides"]


def leaves(tree: dict, path: str = "") -> dict[str, object]:
    """Values of a nested mapping by dotted name; magnifications are one value."""
    found = {}
    for key, value in tree.items():
        name = f"{path}{key}"
        is_section = isinstance(value, dict) and all(isinstance(k, str) for k in value)
        found |= leaves(value, f"{name}.") if is_section else {name: value}
    return found


@pytest.mark.parametrize(
    ("switch", "changed"),
    [
        ("KDE against KoLeo", {"objective.spread", "objective.spread_weight"}),
        ("extended context against crop-and-resize", {"views.mode"}),
        ("mixed against single magnification", {"tiles.magnifications"}),
    ],
)
def test_a_switch_changes_what_it_names_and_nothing_else(study, switch, changed) -> None:
    with_it, without = (
        leaves(study.config_of(arm, 1).model_dump()) for arm in study.SWITCHES[switch]
    )
    assert {name for name in with_it if with_it[name] != without[name]} == changed


def test_longer_dino_is_dino_with_sharper_targets(study) -> None:
    longer, shorter = (
        leaves(study.config_of(arm, 1).model_dump()) for arm in ("dino-long", "dino")
    )
    assert {name for name in longer if longer[name] != shorter[name]} == {
        *("steps", "optimizer.peak_lr"),
        *("objective.teacher_temperature.start", "objective.teacher_temperature.end"),
    }


def test_no_test_case_is_pretrained_on(study, shared_data) -> None:
    chosen = study.training_slides(shared_data)
    assert len(chosen) == 13
    assert not [path.name for path in chosen if path.name.startswith(TEST_CASES)]


@pytest.fixture
def small_judge(study, tmp_path, generator):
    """Twelve tiles of one grey each, in six groups, two classes and three folds."""
    rows = []
    for number in range(12):
        label = "dark" if number < 6 else "light"
        grey = np.full((32, 32, 3), 40 + 15 * number, dtype=np.uint8)
        cv2.imwrite(str(tmp_path / f"{number}.png"), grey)
        rows.append((f"{number}.png", label, f"g{number // 2}", number // 2 % 3))
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "label", "group", "fold"), *rows])
    return study.Judge.of(LabelledTiles.open(tmp_path / "labels.csv"), tile_px=32)


def outcome(study, judge, *, seed: int, right: float, generator) -> object:
    """An outcome whose trained network is right as often as said, the untrained one by half."""

    def labels(share: float) -> list[str]:
        truth = judge.tiles.label_N
        other = np.where(truth == "dark", "light", "dark")
        return np.where(generator.random(len(truth)) < share, truth, other).tolist()

    return study.Outcome(
        arm="dino",
        seed=seed,
        trained=labels(right),
        untrained=labels(0.5),
        rankme=1.0,
        rankme_untrained=1.0,
        n_tiles=1,
        minutes=1.0,
        made_with={},
    )


def test_seeds_are_averaged_and_groups_swapped_for_all_seeds_at_once(
    study, small_judge, generator
) -> None:
    outcomes = [
        outcome(study, small_judge, seed=s, right=0.9, generator=generator) for s in range(3)
    ]
    found, test = study.gain(small_judge, outcomes)
    truth = small_judge.tiles.label_N
    by_hand = np.mean(
        [
            BALANCED_ACCURACY(truth, np.array(o.trained))
            - BALANCED_ACCURACY(truth, np.array(o.untrained))
            for o in outcomes
        ]
    )
    assert found.data.estimate == pytest.approx(by_hand, abs=1e-12)
    assert test.difference == pytest.approx(by_hand, abs=1e-12)
    assert found.data.n_groups == test.n_groups == 6
    assert test.n_permutations == 2**6 - 1


def test_the_probe_votes_by_other_folds_only(study, small_judge, monkeypatch) -> None:
    """An embedding that names the group: neighbours of one's own fold would give it away."""
    monkeypatch.setattr(study, "K", 1)
    group_N = [int(group[1:]) for group in small_judge.tiles.group_N]
    embedding_ND = np.eye(6, dtype=np.float32)[group_N]
    wrong = np.array(small_judge.predict(embedding_ND)) != small_judge.tiles.label_N
    assert wrong.any()


def test_outcomes_come_back_from_their_file(study, small_judge, generator, tmp_path) -> None:
    one = outcome(study, small_judge, seed=0, right=0.8, generator=generator)
    path = tmp_path / study.OUTCOMES
    assert study.read_outcomes(path) == []
    path.write_text(json.dumps(asdict(one)) + "\n", encoding="utf-8")
    assert study.read_outcomes(path) == [one]


@pytest.fixture(scope="module")
def judged(study, shared_data, tmp_path_factory):
    """The catalogue of the training cases, and the tiles of LC25000."""
    torch.set_num_threads(1)
    catalogue = tmp_path_factory.mktemp("study") / "slides.parquet"
    index_slides(study.training_slides(shared_data), catalogue)
    labels = shared_data / "tiles" / "lc25000_mini" / "labels.csv"
    tile_px = study.config_of("dino", 0).tile_px
    return catalogue, study.Judge.of(LabelledTiles.open(labels), tile_px=tile_px)


@pytest.mark.long
@pytest.mark.parametrize("arm", ["dino-long", "dinov2", "dinov2-kde", "virchow2"])
def test_method_beats_its_untrained_network_on_lc25000(study, judged, arm, tmp_path) -> None:
    """KNN over group-safe folds, three seeds; the paired bootstrap over groups excludes 0."""
    catalogue, judge = judged
    outcomes = [
        study.outcome_of(
            *(arm, seed),
            catalogue=catalogue,
            run_dir=tmp_path / str(seed),
            judge=judge,
            overrides=(),
        )
        for seed in study.SEEDS
    ]
    found, test = study.gain(judge, outcomes)
    assert found.data.n_groups > 100
    assert found.data.low > 0
    assert test.p_value < 0.05
