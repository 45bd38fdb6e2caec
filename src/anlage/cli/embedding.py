"""Commands of the chain after pretraining: embed, evaluate, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from anlage.cli.application import (
    MAX_SEED,
    MOST_THREADS,
    app,
    exit_by,
    log_to,
    name_refused,
)

embed = typer.Typer(help="Embed with an encoder.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(embed, name="embed")


@embed.command("tiles")
def embed_tiles_command(
    encoder: Annotated[
        Path, typer.Option(help="Encoder folder such as RUN/encoder, or anlage-tiny.")
    ],
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
    encoder: Annotated[
        Path, typer.Option(help="RUN/encoder, or any other form that `anlage encoders` names.")
    ],
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
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let the encoder's repository run its code.")
    ] = False,
) -> None:
    """Probe a frozen encoder on labelled tiles, split by case, beside honest floors."""
    from anlage.evaluation.evaluate import evaluate_encoder

    log_to(output / "anlage.log")
    result = evaluate_encoder(
        encoder,
        data,
        output,
        seed=seed,
        k=neighbours,
        splits=splits,
        trust_remote_code=trust_remote_code,
    )
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
