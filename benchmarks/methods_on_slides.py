"""Pretraining methods on real slides: does each beat its untrained network, and by which switch?

Five recipes as one chain in which each differs from the one before by one switch, pretrained on
the training cases of real slides for the same number of tiles, from three seeds each (and DINO for
longer, with sharper targets). Each encoder
and the untrained network of its seed are judged on tiles from elsewhere (LC25000, five classes)
by a kNN probe, k = 20, over five folds that split no group of tiles from one original.

Usage, in the repository, with the folder that holds ``data/`` beside it:
    uv run benchmarks/methods_on_slides.py --out DIR [--shared ../shared] [--arms dino dinov2 ...]
        [--seeds 0 1 2]

Every finished run is a line of ``DIR/outcomes.jsonl``; a run that is there is not done again.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anlage.encoders.embed_batch import embed_batches
from anlage.encoders.folder import load_encoder
from anlage.encoders.tile_encoder import TileEncoder
from anlage.evaluation.labelled_tiles import LabelledTiles
from anlage.evaluation.protocol import splits_of
from anlage.evaluation.tile_pixels import fit_tile, read_tile_file
from anlage.probes.metrics.classification import BALANCED_ACCURACY
from anlage.probes.neighbours.knn import knn_probe
from anlage.probes.uncertainty.permutation import PermutationTest, paired_permutation
from anlage.probes.uncertainty.sources_of_variance import SeedComparison, compare_over_seeds
from anlage.probes.unsupervised import rankme
from anlage.provenance import git_commit, versions
from anlage.recipe import load_recipe
from anlage.slides.indexing.index import index_slides
from anlage.training.tile_config import TilePretrainConfig
from anlage.training.tile_pretrain import pretrain_tiles

Array = np.ndarray[Any, np.dtype[Any]]
SEEDS = (0, 1, 2)
K = 20
BATCH = 64  # tiles of a forward pass when embedding
OUTCOMES = "outcomes.jsonl"

SHARED_BY_ALL = (
    "tiles.split=null",  # the catalogue holds training cases only
    "model.patch_px=16",
    "batch_size=32",
    "steps=320",
    "optimizer.peak_lr=1.0e-3",
    "optimizer.teacher_momentum.start=0.99",  # with 0.95 DINO swings between collapses
    "optimizer.freeze_prototypes=0.1",
    "precision=fp32",
    "checkpoint_every=100000",  # the end only
)
RESIZED = ("views.mode=resized", "views.source_px=112")
EXTENDED = (
    *("views.mode=extended_context", "views.source_px=112"),  # 1.75 of a view, as 392 of 224
    *("views.ect_scale=0.1", "views.ect_aspect=0.05"),
)
KOLEO = ("objective.spread=koleo", "objective.spread_weight=0.1")
KDE = ("objective.spread=kde", "objective.spread_weight=0.05", "objective.concentration=5.0")
DINOV2 = ("objective.ibot_weight=1.0", "objective.targets=sinkhorn")
ONE_MPP = ("tiles.magnifications={1.0: 1.0}", "encoder.mpp=1.0")
MIXED_MPP = ("tiles.magnifications={0.5: 1.0, 1.0: 1.0, 2.0: 1.0}", "encoder.mpp=1.0")

DINO = (
    *("objective.ibot_weight=0.0", "objective.targets=centering"),
    *("objective.spread=none", "objective.masked_share=0.0"),
    *(*RESIZED, *ONE_MPP),
)
SHARP = (
    *("objective.teacher_temperature.start=0.02", "objective.teacher_temperature.end=0.02"),
    "optimizer.peak_lr=3.0e-4",
)

ARMS: Mapping[str, tuple[str, ...]] = {
    "dino": DINO,
    "dino-long": (*DINO, *SHARP, "steps=3000"),  # what DINO alone needs (docs/experiments.md)
    "dinov2": (*DINOV2, *KOLEO, *RESIZED, *ONE_MPP),
    "dinov2-kde": (*DINOV2, *KDE, *RESIZED, *ONE_MPP),
    "dinov2-kde-ect": (*DINOV2, *KDE, *EXTENDED, *ONE_MPP),
    "virchow2": (*DINOV2, *KDE, *EXTENDED, *MIXED_MPP),
}
SWITCHES = {  # what is compared: the arm with the switch, the arm without
    "DINOv2 (iBOT, Sinkhorn-Knopp, KoLeo) against DINO": ("dinov2", "dino"),
    "KDE against KoLeo": ("dinov2-kde", "dinov2"),
    "extended context against crop-and-resize": ("dinov2-kde-ect", "dinov2-kde"),
    "mixed against single magnification": ("virchow2", "dinov2-kde-ect"),
}


@dataclass(frozen=True)
class Outcome:
    """One encoder on the tiles it was judged by.

    Attributes:
        arm: Its recipe, of ``ARMS``.
        seed: Of its training and of its untrained network.
        trained: Predicted class of each tile, by the trained encoder's nearest neighbours.
        untrained: The same by the untrained network's.
        rankme: Effective rank of the trained encoder's embeddings of the tiles.
        rankme_untrained: The same of the untrained network's.
        n_tiles: Tiles seen in training, each in all its views.
        minutes: Of pretraining, wall time.
        made_with: Commit, versions, and the overrides of the recipe.
    """

    arm: str
    seed: int
    trained: list[str]
    untrained: list[str]
    rankme: float
    rankme_untrained: float
    n_tiles: int
    minutes: float
    made_with: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Judge:
    """Labelled tiles, decoded once, and the folds of the probe."""

    tiles: LabelledTiles
    pixels_N3HW: torch.Tensor

    @classmethod
    def of(cls, tiles: LabelledTiles, *, tile_px: int) -> Judge:
        """Decode tiles of unknown resolution at the size that encoders take."""
        fitted = [
            fit_tile(read_tile_file(tiles.folder / file), tile_px=tile_px, shrink=None)[0]
            for file in tiles.file_N
        ]
        return cls(tiles, torch.from_numpy(np.stack(fitted).transpose(0, 3, 1, 2).copy()))

    def embed(self, encoder: TileEncoder) -> Array:
        """Embeddings of all tiles, (N, D) float32."""
        batches = self.pixels_N3HW.split(BATCH)
        parts = [e.numpy() for e in embed_batches(encoder, batches, batch_size=BATCH)]
        return np.concatenate(parts)

    def predict(self, embedding_ND: Array) -> list[str]:
        """Class of each tile by its nearest neighbours of the other folds."""
        label_N = np.empty_like(self.tiles.label_N)
        for split in splits_of(self.tiles, "folds", seed=0, k=K):
            train, test = embedding_ND[split.train], embedding_ND[split.test]
            found = knn_probe(train, self.tiles.label_N[split.train], test, k=K)
            label_N[split.test] = found.label_N
        return [str(label) for label in label_N]

    def columns(self, predicted: Iterable[Sequence[str]]) -> list[tuple[Array, Array]]:
        """Truth and prediction of each seed, as the comparison takes them."""
        return [(self.tiles.label_N, np.array(labels)) for labels in predicted]


def training_slides(data: Path) -> list[Path]:
    """Slides at full resolution of the training cases; no test case is among them.

    Args:
        data: Folder with ``MANIFEST.csv``.
    """
    with (data / "MANIFEST.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["set"] == "fullres"]
    return [data / row["path"] for row in rows if row["split"] == "train"]


def config_of(arm: str, seed: int, *, overrides: Sequence[str] = ()) -> TilePretrainConfig:
    """The recipe of an arm."""
    return load_recipe(
        "tiny",
        TilePretrainConfig,
        overrides=[*SHARED_BY_ALL, *ARMS[arm], f"seed={seed}", *overrides],
    )


def outcome_of(
    arm: str, seed: int, *, catalogue: Path, run_dir: Path, judge: Judge, overrides: Sequence[str]
) -> Outcome:
    """Pretrain one arm from one seed on one core, and judge it beside its untrained network."""
    config = config_of(arm, seed, overrides=overrides)
    began = time.perf_counter()
    result = pretrain_tiles(config, catalogue, run_dir, resume=True, device="cpu", threads=1)
    if not result.is_finished:
        msg = f"{arm} {seed} was stopped; the same command goes on with it."
        raise SystemExit(msg)
    minutes = (time.perf_counter() - began) / 60
    encoder = load_encoder(result.encoder)
    trained_ND, untrained_ND = (judge.embed(e) for e in (encoder, encoder.untrained(seed)))
    return Outcome(
        arm=arm,
        seed=seed,
        trained=judge.predict(trained_ND),
        untrained=judge.predict(untrained_ND),
        rankme=rankme(trained_ND),
        rankme_untrained=rankme(untrained_ND),
        n_tiles=config.steps * config.batch_size,
        minutes=minutes,
        made_with={
            "commit": git_commit(),
            "versions": versions(),
            "overrides": [*SHARED_BY_ALL, *ARMS[arm], *overrides],
        },
    )


def gain(judge: Judge, outcomes: Sequence[Outcome]) -> tuple[SeedComparison, PermutationTest]:
    """Trained minus untrained, over the seeds of one arm.

    The metric is averaged over seeds; groups are resampled, the same ones for all seeds and both
    networks. The test swaps both networks' predictions of a group for all seeds at once.
    """
    trained, untrained = [o.trained for o in outcomes], [o.untrained for o in outcomes]
    return _compared(judge, trained, untrained)


def switched(
    judge: Judge, with_it: Sequence[Outcome], without: Sequence[Outcome]
) -> tuple[SeedComparison, PermutationTest]:
    """One arm minus another, in the same way."""
    return _compared(judge, [o.trained for o in with_it], [o.trained for o in without])


def _compared(
    judge: Judge, a: Sequence[Sequence[str]], b: Sequence[Sequence[str]]
) -> tuple[SeedComparison, PermutationTest]:
    group_N, truth_N = judge.tiles.group_N, judge.tiles.label_N
    over_seeds = compare_over_seeds(BALANCED_ACCURACY, judge.columns(a), judge.columns(b), group_N)
    # All seeds below one another: the balanced accuracy of that table is the mean over seeds.
    stacked_a, stacked_b = (
        (np.tile(truth_N, len(labels)), np.concatenate([np.array(x) for x in labels]))
        for labels in (a, b)
    )
    test = paired_permutation(BALANCED_ACCURACY, stacked_a, stacked_b, np.tile(group_N, len(a)))
    return over_seeds, test


def read_outcomes(path: Path) -> list[Outcome]:
    """The runs that are finished."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Outcome(**json.loads(line)) for line in lines]


def tables(judge: Judge, outcomes: Sequence[Outcome]) -> str:
    """What was found, as Markdown: each arm against its untrained network, each switch."""
    by_arm = {arm: sorted((o for o in outcomes if o.arm == arm), key=_seed) for arm in ARMS}
    lines = [
        "| arm | kNN, trained | untrained | difference (95 % over groups) | p | over seeds "
        "| RankMe | tiles | minutes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_arm_line(judge, arm, found) for arm, found in by_arm.items() if found),
        "",
        "| switch | difference (95 % over groups) | p | over seeds |",
        "| --- | --- | --- | --- |",
    ]
    for switch, (with_it, without) in SWITCHES.items():
        seeds = {o.seed for o in by_arm[with_it]} & {o.seed for o in by_arm[without]}
        a, b = ([o for o in by_arm[arm] if o.seed in seeds] for arm in (with_it, without))
        if seeds:
            over_seeds, test = switched(judge, a, b)
            lines.append(f"| {switch} | {_difference_cells(over_seeds, test)} |")
    return "\n".join(lines)


def _seed(outcome: Outcome) -> int:
    return outcome.seed


def _arm_line(judge: Judge, arm: str, found: Sequence[Outcome]) -> str:
    over_seeds, test = gain(judge, found)
    ranks = [np.mean([o.rankme for o in found]), np.mean([o.rankme_untrained for o in found])]
    cells = [
        f"{arm} ({len(found)} seeds)",
        f"{over_seeds.seeds_a.mean:.3f} ± {over_seeds.seeds_a.std:.3f}",
        f"{over_seeds.seeds_b.mean:.3f} ± {over_seeds.seeds_b.std:.3f}",
        _difference_cells(over_seeds, test),
        f"{ranks[0]:.0f} (untrained {ranks[1]:.0f})",
        f"{found[0].n_tiles:,}",
        f"{min(o.minutes for o in found):.1f} to {max(o.minutes for o in found):.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def _difference_cells(over_seeds: SeedComparison, test: PermutationTest) -> str:
    data = over_seeds.data
    pairs = zip(over_seeds.seeds_a.values, over_seeds.seeds_b.values, strict=True)
    by_seed = ", ".join(f"{a - b:+.3f}" for a, b in pairs)
    welch = f"{over_seeds.seeds_low:+.3f} to {over_seeds.seeds_high:+.3f}"
    return (
        f"{data.estimate:+.3f} ({data.low:+.3f} to {data.high:+.3f}) | {test.p_value:.4f} "
        f"| {by_seed}; Welch {welch}"
    )


def main() -> None:
    """Do the runs that are missing, one after another, and print the tables of all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--set", nargs="+", default=[], help="of the recipe of every arm")
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("anlage").setLevel(logging.ERROR)
    given.out.mkdir(parents=True, exist_ok=True)
    data = given.shared / "data"
    catalogue = given.out / "slides.parquet"
    if not catalogue.exists():
        index_slides(training_slides(data), catalogue)
    judge = Judge.of(
        LabelledTiles.open(data / "tiles" / "lc25000_mini" / "labels.csv"),
        tile_px=config_of("dino", 0, overrides=given.set).tile_px,
    )
    path = given.out / OUTCOMES
    done = {(o.arm, o.seed) for o in read_outcomes(path)}
    for seed in given.seeds:
        for arm in given.arms:
            if (arm, seed) not in done:
                outcome = outcome_of(
                    *(arm, seed),
                    catalogue=catalogue,
                    run_dir=given.out / f"{arm}-{seed}",
                    judge=judge,
                    overrides=given.set,
                )
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(outcome)) + "\n")
                print(f"{arm} {seed}: {outcome.minutes:.1f} min", flush=True)
    print(tables(judge, read_outcomes(path)))


if __name__ == "__main__":
    main()
