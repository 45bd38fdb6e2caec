"""Masked slide pretraining on real slides: does it beat what no learning reaches?

Bags by ``anlage-tiny`` of tiles of 112 px at 0.5 mpp, side by side: the 18 windows of H&E slides of
``slides/fullres``, the bundled CMU-1 region, and, to train on more slides, the tiles of training
cases in ``tiles/atlas_organs`` (four of each, where they lie). Five test cases by the data's split;
everything else trains. On the test slides the error of hidden tiles is compared with four floors:
the mean of all training tiles, the mean of the slide's visible tiles, the nearest visible tile, and
a Gaussian mean of visible tiles, whose width was chosen on the training slides.

Usage, in the repository, with the folder that holds ``data/`` beside it:
    uv run benchmarks/masked_slides.py --out DIR [--shared ../shared] [--seeds 0 1 2]
        [--tune] [--set KEY=VALUE ...]

``--tune`` holds out three training cases in place of the test cases, which stay closed.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anlage import samples
from anlage.bags.bag import Bag
from anlage.bags.loader import BagSet
from anlage.bags.slide_labels import SlideLabels
from anlage.bags.store import bag_place, write_bag
from anlage.embedding.embed_tiles import embed_tiles
from anlage.encoders.folder import load_encoder
from anlage.evaluation.tile_pixels import read_tile_file
from anlage.objectives.masked_slide import masked_tile_error, standardised
from anlage.provenance import git_commit, machine
from anlage.recipe import load_recipe
from anlage.slides.indexing.index import index_slides
from anlage.training.checkpoint import newest_checkpoint
from anlage.training.slide_pretraining.config import SlidePretrainConfig
from anlage.training.slide_pretraining.feed import ChosenBags, choose_bags
from anlage.training.slide_pretraining.floors import copy_floor, mean_floor
from anlage.training.slide_pretraining.held_out import HeldOutBags
from anlage.training.slide_pretraining.networks import MaskedBags, SlideAutoencoder, hidden_error
from anlage.training.slide_pretraining.pretrain import pretrain_slides
from anlage.training.slide_pretraining.state import FORMAT

TILE_PX = 112
RECIPE = (
    *("bags.split=train", "watch.every=100", "checkpoint_every=100000", "precision=fp32"),
    *("model.width=192", "model.depth=1", "model.n_heads=4"),  # as wide as a tile's embedding
    *("decoder.width=192", "decoder.depth=1", "decoder.n_heads=4"),
    *("model.segments=[64, 1024]", "model.dilations=[1, 2]"),
    *("views.crop=0.3", "views.n_grid=48", "epochs=900", "batch_size=16"),
    *("optimizer.peak_lr=1.0e-3", "optimizer.warmup_epochs=40"),
)
TEST = ("held_out.split=test", "held_out.share=0")
TUNE = ("held_out.share=0.15",)  # of the training patients
SIGMAS = (1.0, 1.5, 2.0, 2.5, 3.0)


def main() -> None:
    """Train once a seed and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--set", nargs="*", default=[], dest="overrides")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    bags = bags_of(chosen.shared, chosen.out)
    rows = [outcome(chosen, bags, overrides=chosen.overrides, seed=seed) for seed in chosen.seeds]
    name = "tuned" if chosen.tune else "outcomes"
    with (chosen.out / f"{name}.jsonl").open("a") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")


def bags_of(shared: Path, out: Path) -> BagSet:
    """The bags of all slides, made once, and ``slides.csv`` with their patients and splits."""
    folder, table = out / "bags", out / "slides.csv"
    if not table.exists():
        slides = sorted((shared / "data" / "slides" / "fullres").glob("*.tiff"))
        slides.append(samples.slides_folder() / "CMU-1-Small-Region.svs")
        catalogue = index_slides(slides, out / "slides.parquet").catalogue
        assert catalogue is not None
        embed_tiles("anlage-tiny", catalogue, folder, mpp=0.5, tile_px=112, device="cpu")
        labels = SlideLabels.open(samples.slides_labels())
        rows = [
            [slide, labels.patient_of[slide], split or "train"]
            for slide, split in zip(labels.slide_ids, labels.column("split"), strict=True)
        ]
        rows += atlas_bags(shared / "data" / "tiles" / "atlas_organs", folder)
        text = "".join(",".join(row) + "\n" for row in rows)
        table.write_text("slide_id,patient_id,split\n" + text)
    return BagSet.open(folder)


def atlas_bags(tiles: Path, folder: Path) -> list[list[str]]:
    """Bags of the tiles of training cases at 0.5 mpp: each cut into four, where they lie."""
    made = BagSet.open(folder).attributes
    encoder = load_encoder("anlage-tiny", precision="fp32")
    with (tiles / "labels.csv").open(encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if (r["split"], r["mpp"]) == ("train", "0.5")]
    told = []
    for case in sorted({row["case"] for row in rows}):
        own = [row for row in rows if row["case"] == case]
        slide_id = f"{case}__atlas"
        cut = [(x, y) for y in (0, TILE_PX) for x in (0, TILE_PX)]
        pixels = [read_tile_file(tiles / row["file"]) for row in own]
        stack = [p[y : y + TILE_PX, x : x + TILE_PX] for p in pixels for x, y in cut]
        pixels_N3SS = torch.from_numpy(np.stack(stack)).permute(0, 3, 1, 2)
        features = torch.cat([encoder.embed(part) for part in torch.split(pixels_N3SS, 64)])
        corners = np.array([(int(r["x"]) + x, int(r["y"]) + y) for r in own for x, y in cut])
        width_px, height_px = (corners.max(axis=0) + TILE_PX).tolist()
        size = {"slide_width_px": width_px, "slide_height_px": height_px, "slide_mpp": 0.5}
        facts = replace(made, slide_fingerprint=f"atlas_organs/{case}", **size)
        bag = Bag(slide_id, features.numpy().astype(np.float16), corners, facts)
        write_bag(bag_place(folder, slide_id), bag)
        told.append([slide_id, case, "train"])
    return told


def outcome(
    chosen: argparse.Namespace, bags: BagSet, *, overrides: Sequence[str], seed: int
) -> dict[str, Any]:
    """Train, measure on the bags that were held out, and say so."""
    table = SlideLabels.open(chosen.out / "slides.csv")
    held_out = TUNE if chosen.tune else TEST
    config = load_recipe(
        "tiny-slide",
        SlidePretrainConfig,
        overrides=(*RECIPE, *held_out, *overrides, f"seed={seed}"),
    )
    name = "tune" if chosen.tune else "test"
    run = chosen.out / f"{name}-{seed}-{time.strftime('%H%M%S')}"
    began = time.perf_counter()
    result = pretrain_slides(config, bags, run, device="cpu", threads=1, table=table)
    taken_s = time.perf_counter() - began
    picked = choose_bags(config, bags, table)
    row = {
        "seed": seed,
        "steps": result.steps,
        "minutes": round(taken_s / 60, 1),
        "overrides": list(overrides),
        "commit": git_commit(),
        "machine": machine(),
        "slides": errors_of(config, picked, run),
    }
    print(json.dumps(row["slides"], indent=1))
    print(f"seed {seed}, {result.steps} steps, {row['minutes']} minutes")
    return row


def errors_of(
    config: SlidePretrainConfig, picked: ChosenBags, run: Path
) -> dict[str, dict[str, float]]:
    """Error and floors of each held-out slide, and their means."""
    network = SlideAutoencoder(config, input_width=picked.bags.width).eval()
    saved = newest_checkpoint(run / "checkpoints", form=FORMAT)
    assert saved is not None
    network.load_state_dict(saved.read_whole("network")["network"])
    mean_I, sigma = of_training(config, picked)
    found = {}
    for bag in HeldOutBags(config, picked, threads=1):
        with torch.no_grad():
            error = hidden_error(network.predicted(bag), bag)
        found[bag.slide_ids[0]] = {
            "learned": float(error),
            "mean of training tiles": float(constant_floor(bag, mean_I)),
            "mean of the slide": float(mean_floor(bag)),
            "nearest visible tile": float(copy_floor(bag)),
            f"Gaussian mean, {sigma:g} cells": float(gaussian_floor(bag, sigma)),
        }
    names = next(iter(found.values()))
    means = {n: sum(slide[n] for slide in found.values()) / len(found) for n in names}
    return {**found, "mean": means}


def of_training(config: SlidePretrainConfig, picked: ChosenBags) -> tuple[Tensor, float]:
    """Mean standardised tile of the training slides, and the best width of a Gaussian on them."""
    sums, n_tiles = torch.zeros(picked.bags.width), 0
    for slide in picked.train:
        target_LI = standardised(picked.bags.read(slide).features_LD)
        sums, n_tiles = sums + target_LI.sum(dim=0), n_tiles + len(target_LI)
    swapped = ChosenBags(
        bags=picked.bags,
        train=picked.held_out,
        held_out=picked.train,
        patient_of=picked.patient_of,
        grid_um=picked.grid_um,
        n_small=0,
        cache=picked.cache,
    )
    trained = list(HeldOutBags(config, swapped, threads=1))
    errors = {s: sum(float(gaussian_floor(bag, s)) for bag in trained) for s in SIGMAS}
    return sums / n_tiles, min(errors, key=errors.__getitem__)


def constant_floor(bag: MaskedBags, mean_I: Tensor) -> Tensor:
    """Error of predicting every hidden tile as one given standardised embedding."""
    target_MI = standardised(bag.features_TI)[~bag.is_visible_T]
    return masked_tile_error(mean_I.expand_as(target_MI), target_MI, bag.n_hidden)


def gaussian_floor(bag: MaskedBags, sigma: float) -> Tensor:
    """Error of a mean of the visible tiles, weighted by a Gaussian of their distance in cells."""
    target_LI, seen_L = standardised(bag.features_TI), bag.is_visible_T
    hidden, seen = bag.cell_T2[~seen_L].float(), bag.cell_T2[seen_L].float()
    weight = torch.softmax(-torch.cdist(hidden, seen).square() / (2 * sigma**2), dim=1)
    return masked_tile_error(weight @ target_LI[seen_L], target_LI[~seen_L], bag.n_hidden)


if __name__ == "__main__":
    main()
