"""What checkpoints beside the steps cost: the same run with saves every few seconds, and with none.

Usage: uv run benchmarks/checkpointing.py --out DIR [--steps 400] [--saves 5] [--rounds 1]

The recipe ``tiny`` on the bundled slides, one thread that trains and two that read. The last save,
which either run does, is inside both.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import time
from pathlib import Path

import torch

from anlage import samples
from anlage.recipe import load_recipe
from anlage.slides.indexing.index import index_slides
from anlage.training.tile_config import TilePretrainConfig
from anlage.training.tile_pretrain import pretrain_tiles


def seconds_of(catalogue: Path, run: Path, *, steps: int, every: int) -> float:
    """Wall time of one run."""
    shutil.rmtree(run, ignore_errors=True)
    overrides = [f"steps={steps}", f"checkpoint_every={every}"]
    config = load_recipe("tiny", TilePretrainConfig, overrides=overrides)
    began = time.perf_counter()
    assert pretrain_tiles(config, catalogue, run, device="cpu").is_finished
    return time.perf_counter() - began


def main() -> None:
    """Alternate both runs, and print their times and the share that saving takes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--saves", type=int, default=5, help="in a run, the last one included")
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("anlage").setLevel(logging.ERROR)
    given.out.mkdir(parents=True, exist_ok=True)
    catalogue = given.out / "slides.parquet"
    index_slides([samples.slides_folder()], catalogue, labels=samples.slides_labels())
    often, once = given.steps // given.saves, given.steps
    seconds_of(catalogue, given.out / "warm", steps=10, every=10)
    for _ in range(given.rounds):
        with_saves = seconds_of(catalogue, given.out / "often", steps=given.steps, every=often)
        without = seconds_of(catalogue, given.out / "once", steps=given.steps, every=once)
        share = with_saves / without - 1
        every_s = with_saves / given.saves
        print(f"{given.saves} saves: {with_saves:.1f} s, one every {every_s:.0f} s; ", end="")
        print(f"1 save: {without:.1f} s; {share:+.1%}")


if __name__ == "__main__":
    main()
