"""What ``--dry-run`` prints of a pretraining run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from anlage.training.tile_config import TilePretrainConfig


def say_plan(
    config: TilePretrainConfig,
    recipe: str,
    slides: str | None,
    *,
    mfu: float,
    peak_tflops: float,
    cluster: Sequence[str] | None = None,
) -> None:
    """Print what a run takes, and what it asks of a cluster where one is described."""
    from anlage.training.plan import lines, plan_of

    plan = plan_of(config, mfu=mfu, peak_tflops=peak_tflops)
    print(f"recipe {recipe}")
    for line in lines(plan):
        print(line)
    n_slides = None if slides is None else _usable(config, slides)
    if cluster:
        from anlage.training.cluster import cluster_of
        from anlage.training.plan_cost import cost_of
        from anlage.training.plan_cost_lines import cost_lines

        for line in cost_lines(cost_of(plan, config, cluster_of(cluster, n_slides=n_slides))):
            print(line)


def _usable(config: TilePretrainConfig, slides: str) -> int:
    """Slides of a catalogue that can be drawn from; says how many."""
    if not slides.endswith(".parquet"):
        msg = "--dry-run takes a catalogue (.parquet). Make one with `anlage index`."
        raise typer.BadParameter(msg)
    from anlage.slides.catalogue import Catalogue
    from anlage.training.tile_feed import tile_sampler
    from anlage.training.tile_pretrain import usable_slides

    catalogue = Catalogue.open(Path(slides))
    chosen = usable_slides(config, catalogue)
    tile_sampler(config, chosen)  # refuses missing columns and slides without tiles
    print(f"slides: {len(chosen)} of {len(catalogue)} are in the split and can be drawn from")
    return len(chosen)
