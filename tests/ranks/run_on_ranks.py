"""Runs of a small recipe on the ranks that this is started on; the test compares them."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import torch

from anlage.distributed import Ranks, process_group
from anlage.training import tile_pretrain, training_state
from anlage.training.compiled import compile_parts
from micro_recipe import micro_config

torch.set_num_threads(1)


def noted(tiles: list[str], ranks: Ranks) -> None:
    """Have every tile of every rank written down as it is trained on."""
    launch = tile_pretrain.launch_step

    def launched(training, batch, *, wants_stop):
        own = [f"{r.g} {r.slide_id} {r.x} {r.y} {r.mpp}" for r in batch.requests]
        for of_rank in ranks.objects(own):
            tiles.extend(of_rank)
        return launch(training, batch, wants_stop=wants_stop)

    tile_pretrain.launch_step = launched


def main() -> None:
    catalogue, folder = Path(sys.argv[1]), Path(sys.argv[2])
    plan = json.loads(sys.argv[3])
    training_state.compile_parts = partial(compile_parts, backend="aot_eager")  # quick to compile
    with process_group("cpu", timeout_s=60) as ranks:
        tiles: list[str] = []
        noted(tiles, ranks)
        for name, overrides in plan.items():
            tiles.clear()
            config = micro_config(*overrides)
            result = tile_pretrain.pretrain_tiles(
                config, catalogue, folder / name, device="cpu", ranks=ranks
            )
            assert result.is_finished
            if ranks.is_main:
                (folder / f"{name}.tiles.json").write_text(json.dumps(tiles))


if __name__ == "__main__":
    main()
