"""Commands of the chain: pretrain, embed, evaluate, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from anlage.cli.application import (
    MAX_SEED,
    MOST_THREADS,
    Exit,
    app,
    exit_by,
    log_to,
    name_refused,
)

pretrain = typer.Typer(help="Pretrain an encoder.", no_args_is_help=True, rich_markup_mode=None)
embed = typer.Typer(help="Embed with an encoder.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(pretrain, name="pretrain")
app.add_typer(embed, name="embed")


@pretrain.command("tile")
def pretrain_tile(
    slides: Annotated[str, typer.Option(help="Catalogue (.parquet), or slides to index first.")],
    run: Annotated[Path, typer.Option(help="Folder of the run.")],
    recipe: Annotated[str, typer.Option(help="Recipe's name, or a YAML file.")] = "tiny",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Change one value: dotted.key=value.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an existing run.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[
        int, typer.Option(min=1, max=MOST_THREADS, help="Threads that read tiles.")
    ] = 2,
) -> None:
    """Pretrain a tile encoder on tiles streamed from slides."""
    from anlage.recipe import load_recipe
    from anlage.training.tile_config import TilePretrainConfig

    config = load_recipe(recipe, TilePretrainConfig, overrides=overrides or ())
    from anlage.slides.indexing.index import catalogue_of
    from anlage.training.run_record import refuse_existing_run
    from anlage.training.tile_pretrain import pretrain_tiles

    if not resume:
        refuse_existing_run(run)
    log_to(run / "anlage.log")
    catalogue, refused = catalogue_of(slides, folder=run, keep=resume)
    name_refused(refused)
    result = pretrain_tiles(config, catalogue, run, resume=resume, device=device, threads=threads)
    print(f"{result.steps} of {config.steps} steps; encoder: {result.encoder}")
    if not result.is_finished:
        print("stopped by a signal; the same command with --resume goes on from there")
        raise typer.Exit(Exit.INTERRUPTED)
    exit_by(refused)


@embed.command("tiles")
def embed_tiles_command(
    encoder: Annotated[Path, typer.Option(help="Encoder folder, such as RUN/encoder.")],
    slides: Annotated[str, typer.Option(help="Catalogue (.parquet), or slides to index first.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for one HDF5 a slide.")],
    stride_px: Annotated[
        int | None, typer.Option(min=1, help="Step of the grid in pixels; the tile's edge if none.")
    ] = None,
    min_tissue: Annotated[
        float, typer.Option(min=0, max=1, help="Smallest tissue fraction of a tile.")
    ] = 0.25,
    batch_size: Annotated[int, typer.Option(min=1, help="Tiles a forward pass.")] = 64,
    colour: Annotated[
        Literal["stored", "srgb"] | None,
        typer.Option(help="Colours by the slides' ICC profiles, or as stored; the encoder's."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[
        int, typer.Option(min=1, max=MOST_THREADS, help="Threads that read tiles.")
    ] = 2,
) -> None:
    """Embed every tissue tile of every slide: one bag (HDF5) a slide; always resumes."""
    from anlage.embedding.embed_tiles import embed_tiles
    from anlage.slides.indexing.index import catalogue_of

    log_to(output / "anlage.log")
    catalogue, unusable = catalogue_of(slides, folder=output)
    result = embed_tiles(
        encoder,
        catalogue,
        output,
        stride_px=stride_px,
        min_tissue=min_tissue,
        batch_size=batch_size,
        device=device,
        threads=threads,
        colour=colour,
    )
    refused = [*unusable, *result.refused]
    name_refused(refused)
    for name in result.empty:
        print(f"empty: {name}: no tile holds enough tissue")
    print(
        f"{len(result.done)} slides embedded, {len(result.skipped)} already there, "
        f"{len(result.empty)} empty, {len(refused)} refused; bags: {output}"
    )
    exit_by(refused)


@app.command()
def evaluate(
    encoder: Annotated[Path, typer.Option(help="Encoder folder, such as RUN/encoder.")],
    data: Annotated[
        Path, typer.Option(help="Labelled tiles: a CSV, or a folder with one folder a class.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the result.")],
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="Seed of resamples and untrained floor.")
    ] = 0,
    neighbours: Annotated[int, typer.Option(min=1, help="k of the kNN probe.")] = 20,
    splits: Annotated[
        Path | None,
        typer.Option(help="CSV of cases and sides (fold_0 ... of train/val/test, split, or fold)."),
    ] = None,
) -> None:
    """Probe a frozen encoder on labelled tiles, split by case, beside honest floors."""
    from anlage.evaluation.evaluate import evaluate_encoder

    log_to(output / "anlage.log")
    result = evaluate_encoder(encoder, data, output, seed=seed, k=neighbours, splits=splits)
    for line in result.summary():
        print(line)
    print(f"result: {output / 'result.json'}")


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished demo or run.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="HTML file; FOLDER/report.html if none.")
    ] = None,
) -> None:
    """Write one static HTML report of what a folder holds: slides, run, bags, scores."""
    from anlage.report.write import write_report

    log_to(None)
    print(f"report: {write_report(folder, output)}")
