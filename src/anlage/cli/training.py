"""Commands that train: pretrain, and import-run for checkpoints made elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anlage.cli.application import (
    MOST_THREADS,
    Exit,
    app,
    exit_by,
    log_to,
    name_refused,
)
from anlage.cli.dry_run import say_plan

if TYPE_CHECKING:
    from anlage.distributed import Ranks
    from anlage.slides.indexing.found_slide import Refused
    from anlage.training.run_saves import PretrainResult
    from anlage.training.tile_config import TilePretrainConfig
    from anlage.training.watched_tiles import WatchedTiles

pretrain = typer.Typer(help="Pretrain an encoder.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(pretrain, name="pretrain")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


Slides = Annotated[str | None, typer.Option(help="Catalogue (.parquet), or slides to index first.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Change one value: dotted.key=value.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what the run takes; do nothing.")]
Mfu = Annotated[float, typer.Option(min=0.01, max=1, help="MFU that --dry-run reckons with.")]
Peak = Annotated[float, typer.Option(min=0.01, help="The GPU's peak, TFLOP/s; H100, bf16.")]
ClusterSettings = Annotated[
    list[str] | None,
    typer.Option("--cluster", help="Machines that --dry-run plans for: gpus=64; repeatable."),
]
Watched = Annotated[
    Path | None, typer.Option(help="Labelled tiles (CSV or folder) to probe the encoder on.")
]
TrackerNames = Annotated[
    list[str] | None, typer.Option("--tracker", help="wandb, mlflow or trackio; repeatable.")
]
Threads = Annotated[int, typer.Option(min=1, max=MOST_THREADS, help="Threads that read tiles.")]


@pretrain.command("tile")
def pretrain_tile(
    slides: Slides = None,
    run: Annotated[Path | None, typer.Option(help="Folder of the run.")] = None,
    recipe: Annotated[str, typer.Option(help="Recipe's name, or a YAML file.")] = "tiny",
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an existing run.")] = False,
    dry_run: DryRun = False,
    mfu: Mfu = 0.35,
    peak_tflops: Peak = 989.0,
    cluster: ClusterSettings = None,
    watch: Watched = None,
    trackers: TrackerNames = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Threads = 2,
) -> None:
    """Pretrain a tile encoder on tiles streamed from slides."""
    from anlage.recipe import load_recipe
    from anlage.training.tile_config import TilePretrainConfig

    config = load_recipe(recipe, TilePretrainConfig, overrides=overrides or ())
    if dry_run:
        say_plan(config, recipe, slides, mfu=mfu, peak_tflops=peak_tflops, cluster=cluster)
        return
    if slides is None or run is None:
        msg = "needs --slides and --run (or --dry-run)."
        raise typer.BadParameter(msg)
    from anlage.distributed import process_group
    from anlage.training.run_record import refuse_existing_run

    with process_group(device, timeout_s=config.engine.timeout_s) as ranks:
        if not resume:
            ranks.from_main(lambda: refuse_existing_run(run))
        log_to(run / ("anlage.log" if ranks.is_main else f"anlage-rank-{ranks.rank}.log"))
        watched = None if watch is None else _watched(watch, config)
        _pretrain(
            config,
            slides,
            run,
            resume=resume,
            watched=watched,
            trackers=trackers or (),
            device=device,
            threads=threads,
            ranks=ranks,
        )


def _pretrain(
    config: TilePretrainConfig,
    slides: str,
    run: Path,
    *,
    resume: bool,
    watched: WatchedTiles | None,
    trackers: Sequence[str],
    device: str,
    threads: int,
    ranks: Ranks,
) -> None:
    from anlage.slides.catalogue import Catalogue
    from anlage.slides.indexing.index import catalogue_of
    from anlage.training.tile_pretrain import pretrain_tiles

    def indexed() -> tuple[Path, tuple[Refused, ...]]:  # by one rank; a catalogue is read by each
        found, refused = catalogue_of(slides, folder=run, keep=resume)
        return found.path, refused

    path, refused = ranks.from_main(indexed)
    catalogue = Catalogue.open(path)
    if ranks.is_main:
        name_refused(refused)
    result = pretrain_tiles(
        config,
        catalogue,
        run,
        resume=resume,
        device=device,
        threads=threads,
        watched=watched,
        trackers=trackers,
        ranks=ranks,
    )
    _say_result(result, config, refused, is_main=ranks.is_main)


def _say_result(
    result: PretrainResult,
    config: TilePretrainConfig,
    refused: Sequence[Refused],
    *,
    is_main: bool,
) -> None:
    """Say how the run ended, on one rank, and end with the code of it on all."""
    early = " (ended early: its probe got no better)" if result.ended_early else ""
    if is_main:
        print(f"{result.steps} of {config.steps} steps{early}; encoder: {result.encoder}")
    if not result.is_finished:
        if is_main:
            print("stopped by a signal; the same command with --resume goes on from there")
        raise typer.Exit(Exit.INTERRUPTED)
    exit_by(refused)


def _watched(data: Path, config: TilePretrainConfig) -> WatchedTiles:
    from anlage.errors import RecipeError
    from anlage.evaluation.watched_tiles import watched_tiles

    if config.watch.every is None:
        told = "needs watch.every, the steps between two looks, such as --set watch.every=500"
        raise RecipeError(data, told)
    return watched_tiles(data, tile_px=config.tile_px, mpp=config.mpp)


@app.command("import-run")
def import_run_command(
    checkpoint: Annotated[
        Path, typer.Argument(help="dinov2's teacher_checkpoint.pth, or a training checkpoint.")
    ],
    run: Annotated[Path, typer.Option(help="Folder to make.")],
    mpp: Annotated[float, typer.Option(min=0.001, help="Resolution it was trained at, um a px.")],
    tile_px: Annotated[int, typer.Option(min=1, help="Edge of the tiles it embeds.")] = 224,
    mean: Annotated[
        tuple[float, float, float], typer.Option(help="Channel means it was trained with.")
    ] = IMAGENET_MEAN,
    std: Annotated[
        tuple[float, float, float], typer.Option(help="Channel deviations.")
    ] = IMAGENET_STD,
    n_heads: Annotated[
        int | None, typer.Option(min=1, help="Attention heads; width / 64 if none.")
    ] = None,
) -> None:
    """Take a dinov2 checkpoint with its heads over, to go on training (init.run=RUN)."""
    from anlage.training.import_run import import_run

    if not all(deviation > 0 for deviation in std):
        msg = f"--std needs deviations above 0; got {std}."
        raise typer.BadParameter(msg)
    notes = import_run(
        checkpoint, run, mpp=mpp, tile_px=tile_px, mean=mean, std=std, n_heads=n_heads
    )
    for note in notes:
        print(f"note: {note}")
    print(f"run: {run}; go on with: anlage pretrain tile --set init.run={run} ...")
