"""Make and judge the encoder that comes with anlage: ``anlage-tiny``.

Trains the recipe ``tiny-1gpu`` with smaller views on the slides of training cases, keeps the
encoder that is best by a kNN probe on training cases, stores it in half precision, and judges the
stored one: the organ of tiles by leaving one case out, and LC25000's five classes by its folds.

Usage, in the repository, with the folder that holds ``data/`` beside it:
    uv run benchmarks/anlage_tiny.py --out DIR [--shared ../shared] [--into FOLDER]

A run that is in ``DIR`` goes on where it was, and is not done again. ``--judge FOLDER`` judges that
encoder (a folder, or ``anlage-tiny``) and trains nothing.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from anlage.encoders.folder import load_encoder, save_encoder
from anlage.encoders.tile_encoder import TileEncoder
from anlage.evaluation.evaluate import evaluate_encoder
from anlage.evaluation.labelled_tiles import LabelledTiles
from anlage.evaluation.result import EvaluationResult, interval_in_words
from anlage.evaluation.watched_tiles import watched_tiles
from anlage.recipe import load_recipe
from anlage.slides.indexing.index import index_slides
from anlage.training.best import read_best
from anlage.training.log import read_metrics
from anlage.training.tile_config import TilePretrainConfig
from anlage.training.tile_pretrain import pretrain_tiles

RECIPE = "tiny-1gpu"
OVERRIDES = (  # what an hour of one CPU core asks for
    *("steps=1200", "batch_size=32", "tiles.split=train"),
    *("views.source_px=128", "views.global_px=80", "views.local_px=32"),
    *("views.blur_sigma=[0.1, 0.7]", "views.blur_kernel_px=5"),  # the same share of smaller views
    *("model.image_px=80", "model.linear_std=null"),
    *("head.n_prototypes=256", "head.hidden=512", "head.bottleneck=128", "head.linear_std=null"),
    "objective.teacher_temperature={start: 0.04, end: 0.04}",
    *("optimizer.peak_lr=7.0e-4", "optimizer.teacher_momentum.start=0.99"),
    "optimizer.freeze_prototypes=0.05",
    *("checkpoint_every=100", "watch.every=100", "watch.pictures=false"),
    *("encoder.tile_px=112", "encoder.mpp=1.0"),
)
ORGANS = Path("tiles") / "atlas_organs" / "labels.csv"
TASK = {"in_organ5_task": "1"}
CHOICE = TASK | {"split": "train"}  # tiles whose labels chose the encoder
ATTRIBUTION = "Patoloji Atlas\u0131, Serdar Balc\u0131 et al., CC BY 4.0"


def index_training_slides(data: Path, out: Path) -> Path:
    """Catalogue of the slides at full resolution of the training cases, with their patients."""
    catalogue = out / "slides.parquet"
    if catalogue.exists():
        return catalogue
    with (data / "MANIFEST.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["set"] == "fullres"]
    rows = [row for row in rows if row["split"] == "train"]
    labels = out / "slides.csv"
    columns = {"slide_id": "slide", "patient_id": "patient_id", "stain": "stain"}
    columns |= {"tissue": "organ", "split": "split"}
    _write_rows(labels, [{name: row[of] for name, of in columns.items()} for row in rows])
    index_slides([data / row["path"] for row in rows], catalogue, labels=labels)
    return catalogue


def choice_table(data: Path, out: Path) -> Path:
    """Table of the labelled tiles that the encoder is chosen by: training cases only."""
    table = data / ORGANS
    with table.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if CHOICE.items() <= row.items()]
    path = out / "watched.csv"
    _write_rows(
        path,
        [
            {
                "file": os.path.relpath(table.parent / row["file"], out),
                **{"label": row["organ"], "case": row["case"], "mpp": row["mpp"]},
            }
            for row in rows
        ],
    )
    return path


def _write_rows(path: Path, rows: Sequence[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def train(data: Path, out: Path) -> Path:
    """Train on one core, or go on, or do nothing if it is done.

    Returns:
        The run's folder.
    """
    config = load_recipe(RECIPE, TilePretrainConfig, overrides=OVERRIDES)
    watched = watched_tiles(choice_table(data, out), tile_px=config.tile_px, mpp=config.mpp)
    run, catalogue = out / "run", index_training_slides(data, out)
    pretrain_tiles(config, catalogue, run, resume=True, device="cpu", threads=1, watched=watched)
    return run


def provenance_of(encoder: TileEncoder, run: Path, data: Path) -> dict[str, Any]:
    """What the run wrote, and how the encoder was chosen, without any path.

    ``patients`` names the cases whose labels chose the encoder as well, and ``watched`` names them
    alone, so that a test on them says that they were seen, and how.
    """
    record, best = encoder.config.provenance, read_best(run)
    assert best is not None, "the run is watched"
    rows = list(read_metrics(run / "metrics.jsonl"))
    batch = record["config"]["batch_size"]
    chosen_by = LabelledTiles.open(data / ORGANS, label="organ", where=CHOICE)
    cases = sorted(set(chosen_by.group_N.tolist()))
    return {
        **record,
        "patients": sorted({*record["patients"], *cases}),
        "watched": {
            **{"source": ORGANS.as_posix(), "where": CHOICE, "cases": cases},
            "sha256": record["watched"]["sha256"],
        },
        "recipe": RECIPE,
        "overrides": list(OVERRIDES),
        "chosen": {name: best[name] for name in ("step", "metric", "value")},
        "tiles_seen": best["step"] * batch,
        "minutes": round(sum(batch / row["tiles_per_s"] for row in rows[: best["step"]]) / 60, 1),
        "data": ATTRIBUTION,
        "licence": "Apache-2.0",
    }


def store(run: Path, data: Path, folder: Path) -> None:
    """Write the run's best encoder in half precision, with its provenance."""
    encoder = load_encoder(run / "best")
    provenance = provenance_of(encoder, run, data)
    config = encoder.config.model_copy(update={"provenance": provenance})
    card = folder / "README.md"
    text = card.read_bytes() if card.exists() else None
    card.unlink(missing_ok=True)  # an encoder folder is replaced only if it holds nothing else
    save_encoder(folder, encoder.model, config, dtype=torch.float16)
    if text is not None:
        card.write_bytes(text)


def judge(encoder: TileEncoder, data: Path, out: Path) -> Iterator[str]:
    """Lines of Markdown: every score, every difference from a floor, what to know."""
    organs = LabelledTiles.open(data / ORGANS, label="organ", where=TASK)
    chosen_by = LabelledTiles.open(data / ORGANS, label="organ", where=CHOICE)
    lc25000 = LabelledTiles.open(data / "tiles" / "lc25000_mini" / "labels.csv")
    sets = {
        "organ, leaving one case out": (organs, "organs"),
        "the same, cases that chose the encoder": (chosen_by, "organs_train"),
        "LC25000, five folds": (lc25000, "lc25000"),
    }
    for title, (tiles, name) in sets.items():
        result = evaluate_encoder(encoder, tiles, out / name)
        yield from _table(title, result)


def _table(title: str, result: EvaluationResult) -> Iterator[str]:
    yield from ("", f"**{title}**: {result.data.n_tiles:,} tiles, {result.data.n_groups} groups.")
    yield from ("", "| features | probe | balanced accuracy |", "| --- | --- | --- |")
    for score in result.scores:
        in_words = interval_in_words(score.balanced_accuracy)
        yield f"| {score.model} | {score.probe} | {in_words} |"
    yield from (
        "",
        "| encoder minus | probe | difference | p (Holm) |",
        "| --- | --- | --- | --- |",
    )
    for c in result.comparisons:
        p = "" if c.p_adjusted is None else f"{c.p_adjusted:.2g}"
        yield f"| {c.floor} | {c.probe} | {interval_in_words(c.difference, sign='+')} | {p} |"
    linear, knn = (result.score("encoder", probe) for probe in ("linear", "knn"))
    if result.data.n_groups <= 40:
        yield from ("", "| case | linear | kNN | seen |", "| --- | --- | --- | --- |")
        for case, accuracy in linear.group_accuracy.items():
            seen = "yes" if case in result.leakage.seen else "no"
            yield f"| {case} | {accuracy:.2f} | {knn.group_accuracy[case]:.2f} | {seen} |"
    yield ""
    yield f"RankMe {result.rankme['encoder']:.1f}, untrained {result.rankme['untrained']:.1f}."
    yield from (f"- {note}" for note in result.notes)


def main() -> None:
    """Train what is missing, store it, judge it, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the run and the scores")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--into", type=Path, help="encoder folder to write; OUT/encoder if none")
    parser.add_argument("--judge", help="an encoder to judge; nothing is trained")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    data, named = given.shared / "data", given.judge
    if named is None:
        run = train(data, given.out)
        named = given.into or given.out / "encoder"
        store(run, data, named)
    encoder = load_encoder(named)
    print(f"encoder {encoder.fingerprint}")
    print("\n".join(judge(encoder, data, given.out / "scores")))


if __name__ == "__main__":
    main()
