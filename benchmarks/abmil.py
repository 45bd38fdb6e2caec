"""Attention MIL: a whole training from files on disk beside its steps on tensors in memory.

Makes 50 bags of 2,000 random tiles of width 1,024 in a temporary folder and trains on all of them.

whole   ``BagSet.open``, a new ``BagCache``, ``train_fold``: headers, checksums, reading ahead,
        checkpoints, log, the model's folder.
steps   the same optimiser steps on batches that were packed before; nothing else.

Both end in the same weights, to the bit, which is checked. Sides take turns; medians of the rounds
after one that is thrown away. Files are in the page cache.

Usage: OMP_WAIT_POLICY=PASSIVE uv run benchmarks/abmil.py [--bags 50] [--tiles 2000] [--width 1024]
           [--epochs 10] [--batch 8] [--threads 2] [--rounds 3] [--device cpu] [--json FILE]
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from turns import take_turns

from anlage.bags.loader import BagCache, BagSet
from anlage.bags.slide_labels import SlideLabels
from anlage.bags.store import Bag, BagAttributes, bag_place, write_bag
from anlage.encoders.slide_model_folder import load_slide_model
from anlage.probes.splits.split import Split
from anlage.recipe import load_recipe
from anlage.training.finetuning.config import FinetuneConfig
from anlage.training.finetuning.fold import MODEL, _Fold, train_fold
from anlage.training.finetuning.material import Material
from anlage.training.finetuning.targets import targets_of

TARGET = 1.1
ATTRIBUTES = BagAttributes(
    encoder_fingerprint="e" * 64,
    slide_fingerprint="s" * 64,
    mpp=0.5,
    slide_mpp=0.5,
    slide_width_px=100_000,
    slide_height_px=100_000,
    tile_px=256,
    stride_px=256,
    min_tissue=0.25,
    mean=None,
    std=None,
)


def main() -> None:
    """Measure and print."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="anlage-abmil-") as name:
        found = measure(Path(name), options)
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Both sides in turns."""
    bags, labels = _make(folder, options)
    config = load_recipe(
        "abmil",
        FinetuneConfig,
        overrides=[
            f"epochs={options.epochs}",
            f"batch_size={options.batch}",
            "choice={keep: last, patience: null}",
        ],
    )
    targets = targets_of(config.task, SlideLabels.open(labels), BagSet.open(bags))
    everyone = np.arange(len(targets))
    split = Split(name="0", train=everyone[:-1], test=everyone[-1:])
    runs = [0]

    def material() -> Material:
        opened = BagSet.open(bags)
        return Material(
            bags=opened,
            targets=targets,
            cache=BagCache(opened),
            threads=options.threads,
            device=torch.device(options.device),
        )

    def fold(given: Material) -> _Fold:
        runs[0] += 1
        place = folder / f"run {runs[0]}"
        return _Fold(config, given, split, folder=place, number=0)

    first = fold(material())
    draws = list(first._draws())
    packed = list(first._parts(iter(draws)))
    last: dict[str, Any] = {}

    def whole() -> None:
        runs[0] += 1
        last["whole"] = train_fold(config, material(), split, folder / f"run {runs[0]}").folder
        _wait(options.device)

    def steps() -> None:
        resident = fold(first.material)
        for drawn, batch in zip(draws, packed, strict=True):
            resident._step(drawn, iter([batch]))
        last["steps"] = resident.state.network
        _wait(options.device)

    rates = take_turns({"whole": (whole, 1), "steps": (steps, 1)}, rounds=options.rounds)
    _refuse_other_weights(last["whole"], last["steps"], options.device)
    seconds = {name: 1 / rate.per_s for name, rate in rates.items()}
    return {
        "what": f"{options.bags} bags x {options.tiles} tiles x {options.width}, "
        f"{len(packed)} steps of {options.batch} bags",
        "precision": config.precision,
        "device": options.device,
        "threads": options.threads,
        "load_before": os.getloadavg()[0],
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "cpu_seconds": {name: round(rate.cpu_ms / 1e3, 3) for name, rate in rates.items()},
        "whole_over_steps": round(seconds["whole"] / seconds["steps"], 3),
        "target": TARGET,
    }


def _make(folder: Path, options: argparse.Namespace) -> tuple[Path, Path]:
    """Bags of noise, in some tiles of which the class is told, and their labels."""
    bags, labels = folder / "bags", folder / "labels.csv"
    bags.mkdir()
    generator = np.random.default_rng(0)
    edge = int(np.ceil(np.sqrt(options.tiles)))
    row_L, column_L = np.divmod(np.arange(options.tiles), edge)
    corner_L2 = np.stack([column_L, row_L], axis=1) * 256
    names = [f"slide {number:03d}" for number in range(options.bags + 1)]
    for number, slide_id in enumerate(names):
        feature_LD = generator.standard_normal((options.tiles, options.width), dtype=np.float32)
        feature_LD[: options.tiles // 10, 0] += 3 * (number % 2)
        bag = Bag(slide_id, feature_LD.astype(np.float16), corner_L2, ATTRIBUTES)
        write_bag(bag_place(bags, slide_id), bag)
    with labels.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["slide_id", "patient_id", "label"])
        writer.writerows([s, s, ("no", "yes")[number % 2]] for number, s in enumerate(names))
    return bags, labels


def _refuse_other_weights(folder: Path, network: torch.nn.Module, device: str) -> None:
    """Both sides have to have done the same."""
    stored = load_slide_model(folder / MODEL, device=torch.device(device), precision="fp32")
    ours = network.state_dict()
    for name, tensor in stored.network.state_dict().items():
        if not torch.equal(tensor, ours[name]):
            msg = f"abmil: {name} differs between the sides. They did not do the same steps."
            raise RuntimeError(msg)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (
        ("bags", 50),
        ("tiles", 2000),
        ("width", 1024),
        ("epochs", 10),
        ("batch", 8),
        ("threads", 2),
        ("rounds", 3),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
