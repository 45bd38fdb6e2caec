"""The command that pretrains a slide encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anlage.cli.application import MOST_THREADS, Exit, exit_by, log_to, name_refused
from anlage.cli.training import DryRun, Overrides, TrackerNames, pretrain

if TYPE_CHECKING:
    from anlage.bags.loader import BagSet
    from anlage.errors import BagError
    from anlage.slides.indexing.found_slide import Refused
    from anlage.training.run_saves import PretrainResult
    from anlage.training.slide_pretraining.config import SlidePretrainConfig

GIGAPATH_WIDTH, ASSUMED_TILES = 1536, 10_000  # of a bag, where --dry-run is given none


@pretrain.command("slide")
def pretrain_slide(
    bags: Annotated[str | None, typer.Option(help="Folder or URL of bags of one encoder.")] = None,
    run: Annotated[Path | None, typer.Option(help="Folder of the run.")] = None,
    recipe: Annotated[str, typer.Option(help="Recipe's name, or a YAML file.")] = "tiny-slide",
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an existing run.")] = False,
    dry_run: DryRun = False,
    watch: Annotated[
        Path | None,
        typer.Option(help="Table of slides: patient_id; split, label as the recipe asks."),
    ] = None,
    trackers: TrackerNames = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[
        int, typer.Option(min=1, max=MOST_THREADS, help="Threads that read bags.")
    ] = 2,
) -> None:
    """Pretrain a slide encoder on bags of tile embeddings."""
    from anlage.recipe import load_recipe
    from anlage.training.slide_pretraining.config import SlidePretrainConfig

    config = load_recipe(recipe, SlidePretrainConfig, overrides=overrides or ())
    if not dry_run and (bags is None or run is None):
        msg = "needs --bags and --run (or --dry-run)."
        raise typer.BadParameter(msg)
    if dry_run:
        _say_plan(config, recipe, bags, watch, device=device)
        return
    assert bags is not None
    assert run is not None
    _pretrain(
        config,
        bags,
        run,
        resume=resume,
        watch=watch,
        trackers=trackers or (),
        device=device,
        threads=threads,
    )


def _pretrain(
    config: SlidePretrainConfig,
    bags: str,
    run: Path,
    *,
    resume: bool,
    watch: Path | None,
    trackers: Sequence[str],
    device: str,
    threads: int,
) -> None:
    from anlage.bags.loader import BagSet
    from anlage.bags.slide_labels import SlideLabels
    from anlage.distributed import process_group
    from anlage.training.run_record import refuse_existing_run
    from anlage.training.slide_pretraining.pretrain import pretrain_slides

    with process_group(device, timeout_s=config.engine.timeout_s) as ranks:
        if not resume:
            ranks.from_main(lambda: refuse_existing_run(run))
        log_to(run / ("anlage.log" if ranks.is_main else f"anlage-rank-{ranks.rank}.log"))
        opened = BagSet.open(bags, grid_um=config.bags.grid_um)
        refused = _refused(opened)
        if ranks.is_main:
            name_refused(refused)
        result = pretrain_slides(
            config,
            opened,
            run,
            resume=resume,
            device=device,
            threads=threads,
            table=None if watch is None else SlideLabels.open(watch),
            trackers=trackers,
            ranks=ranks,
        )
        unread = _refused_of(result.left_out[len(opened.refused) :])
        if ranks.is_main:
            name_refused(unread)
        _say_result(result, is_main=ranks.is_main)
        exit_by([*refused, *unread])


def _say_result(result: PretrainResult, *, is_main: bool) -> None:
    """Say how the run ended, on one rank; end all with the code of a signal if it was one."""
    early = " (ended early: its probe got no better)" if result.ended_early else ""
    if is_main:
        print(f"{result.steps} steps{early}; slide encoder: {result.encoder}")
    if not result.is_finished:
        if is_main:
            print("stopped by a signal; the same command with --resume goes on from there")
        raise typer.Exit(Exit.INTERRUPTED)


def _refused(bags: BagSet) -> list[Refused]:
    """Bags that cannot be used, empty ones among them."""
    from anlage.slides.indexing.found_slide import Refused

    empty = [Refused(slide_id, "its bag holds no tile") for slide_id in bags.empty]
    return [*_refused_of(bags.refused), *empty]


def _refused_of(errors: Sequence[BagError]) -> list[Refused]:
    from anlage.slides.indexing.found_slide import Refused

    return [Refused(error.path, error.message) for error in errors]


def _say_plan(
    config: SlidePretrainConfig,
    recipe: str,
    bags: str | None,
    watch: Path | None,
    *,
    device: str,
) -> None:
    from anlage.bags.loader import BagSet
    from anlage.bags.slide_labels import SlideLabels
    from anlage.encoders.tile_encoder import torch_device
    from anlage.training.slide_pretraining.feed import choose_bags
    from anlage.training.slide_pretraining.plan import slide_plan_lines, slide_plan_of

    print(f"recipe {recipe}")
    n_tiles, width, n_held_out = [ASSUMED_TILES] * config.batch_size, GIGAPATH_WIDTH, 0
    if bags is None:
        print(
            f"no --bags: assumed are {config.batch_size:,} bags of {ASSUMED_TILES:,} tiles, "
            f"{width:,} wide"
        )
    else:
        opened = BagSet.open(bags, grid_um=config.bags.grid_um)
        name_refused(_refused(opened))
        table = None if watch is None else SlideLabels.open(watch)
        chosen = choose_bags(config, opened, table)
        n_tiles = [chosen.n_tiles[slide] for slide in chosen.train]
        width, n_held_out = opened.width, len(chosen.held_out)
    plan = slide_plan_of(
        config, n_tiles, input_width=width, n_held_out=n_held_out, device=torch_device(device)
    )
    for line in slide_plan_lines(plan):
        print(line)
