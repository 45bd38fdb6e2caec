"""The command line: parse arguments, call one function, print its result.

Nothing heavy is imported before a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anlage import __version__

if TYPE_CHECKING:
    from anlage.slides.discovery import Refused

MAX_SEED = 2**32 - 1
app = typer.Typer(
    name="anlage",
    help="Train, run and judge foundation models of pathology, from slides to a report.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
pretrain = typer.Typer(help="Pretrain an encoder.", no_args_is_help=True, rich_markup_mode=None)
embed = typer.Typer(help="Embed with an encoder.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(pretrain, name="pretrain")
app.add_typer(embed, name="embed")


FILE_ONLY = "anlage.failure"  # what ended a command, which the terminal is told by its last line


class Exit(IntEnum):
    """How a command ends."""

    DONE = 0
    FAILED = 1
    WRONG_USAGE = 2
    SOME_REFUSED = 3
    INTERRUPTED = 130


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"anlage {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    del version


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path(
        "anlage-demo"
    ),
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of everything random.")] = 0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Pretraining steps; the recipe's number if not given.")
    ] = None,
    slides: Annotated[
        list[Path] | None,
        typer.Option(help="Your slides (file, folder or glob) instead of the bundled ones."),
    ] = None,
) -> None:
    """Run the whole chain on bundled real slides, from slides to a report; resumes if stopped."""
    from anlage.demo import claim_folder, run_demo

    claim_folder(out, seed=seed, steps=steps, slides=slides)
    _log_to(out / "anlage.log")
    result = run_demo(out, seed=seed, steps=steps, slides=slides)
    _name_refused(result.refused)
    if result.report is None:
        print(f"stopped after step {result.steps}; the same command goes on from there")
        raise typer.Exit(Exit.INTERRUPTED)
    for line in result.summary:
        print(line)
    print(f"report: {result.report}")
    _exit_by(result.refused)


@app.command()
def index(
    slides: Annotated[list[str], typer.Argument(help="Slide files, folders or globs.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Catalogue to write (Parquet).")],
    labels: Annotated[
        Path | None, typer.Option(help="CSV to join by slide_id, or by the stem of `file`.")
    ] = None,
    mask_mpp: Annotated[
        float, typer.Option(min=0.5, max=100, help="Resolution of tissue masks, µm per pixel.")
    ] = 8,
) -> None:
    """Make a catalogue of slides: size, resolution, tissue; bad slides are listed with a reason."""
    from anlage.slides.index import index_slides

    _log_to(None)
    result = index_slides(slides, output, labels=labels, mask_mpp=mask_mpp)
    _name_refused(result.refused)
    for name in result.unmatched_labels:
        print(f"label without a slide: {name}")
    for name in result.slides_without_labels:
        print(f"slide without a label: {name}")
    written = f"{result.n_accepted} slides in {output}" if result.catalogue else "nothing written"
    print(f"{written}, {len(result.refused)} refused")
    _exit_by(result.refused)


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
    threads: Annotated[int, typer.Option(min=1, help="Threads that read tiles.")] = 2,
) -> None:
    """Pretrain a tile encoder on tiles streamed from slides."""
    from anlage.recipe import load_recipe
    from anlage.training.tile_config import TilePretrainConfig

    config = load_recipe(recipe, TilePretrainConfig, overrides=overrides or ())
    from anlage.slides.index import catalogue_of
    from anlage.training.run_record import refuse_existing_run
    from anlage.training.tile_pretrain import pretrain_tiles

    if not resume:
        refuse_existing_run(run)
    _log_to(run / "anlage.log")
    catalogue, refused = catalogue_of(slides, folder=run, keep=resume)
    _name_refused(refused)
    result = pretrain_tiles(config, catalogue, run, resume=resume, device=device, threads=threads)
    print(f"{result.steps} of {config.steps} steps; encoder: {result.encoder}")
    if not result.is_finished:
        print("stopped by a signal; the same command with --resume goes on from there")
        raise typer.Exit(Exit.INTERRUPTED)
    _exit_by(refused)


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
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="Threads that read tiles.")] = 2,
) -> None:
    """Embed every tissue tile of every slide: one bag (HDF5) a slide; always resumes."""
    from anlage.embedding.embed_tiles import embed_tiles
    from anlage.slides.index import catalogue_of

    _log_to(output / "anlage.log")
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
    )
    refused = [*unusable, *result.refused]
    _name_refused(refused)
    for name in result.empty:
        print(f"empty: {name}: no tile holds enough tissue")
    print(
        f"{len(result.done)} slides embedded, {len(result.skipped)} already there, "
        f"{len(result.empty)} empty, {len(refused)} refused; bags: {output}"
    )
    _exit_by(refused)


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
) -> None:
    """Probe a frozen encoder on labelled tiles, split by case, beside honest floors."""
    from anlage.evaluation.evaluate import evaluate_encoder

    _log_to(output / "anlage.log")
    result = evaluate_encoder(encoder, data, output, seed=seed, k=neighbours)
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

    _log_to(None)
    print(f"report: {write_report(folder, output)}")


def main() -> None:
    """Run the command line; an error of ours becomes one line and an exit code."""
    # Waiting threads sleep instead of spinning: beside another busy program a training step on two
    # cores took 1.6 s instead of 8.7 s. Read by OpenMP when torch is imported, so set before it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from anlage.errors import AnlageError, RecipeError

    try:
        app(standalone_mode=True)
    except RecipeError as error:
        _fail(error, Exit.WRONG_USAGE)
    except (AnlageError, OSError) as error:
        _fail(error, Exit.FAILED)
    except SystemExit as end:
        if isinstance(getattr(end.__context__, "__cause__", None), KeyboardInterrupt):
            print("interrupted; run it again to go on", file=sys.stderr)
        raise  # with 130, into which typer has turned the interrupt


def _fail(error: Exception, code: Exit) -> None:
    logging.getLogger(FILE_ONLY).error("%s: %s", type(error).__name__, error)
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    sys.exit(code)


def _name_refused(refused: Sequence[Refused]) -> None:
    for slide in refused:
        print(f"refused: {slide.uri}: {slide.reason}")


def _exit_by(refused: Sequence[Refused]) -> None:
    if refused:
        raise typer.Exit(Exit.SOME_REFUSED)


def _log_to(file: Path | None) -> None:
    """Log to the terminal, and every line with its time to a file."""
    from rich.logging import RichHandler

    from anlage.progress import CONSOLE

    root = logging.getLogger("anlage")
    root.setLevel(logging.INFO)
    shown = RichHandler(console=CONSOLE, show_path=False, show_time=False, show_level=False)
    said_otherwise = {FILE_ONLY, "anlage.progress"} if CONSOLE.is_terminal else {FILE_ONLY}
    shown.addFilter(lambda record: record.name not in said_otherwise)  # the bar, the last line
    root.handlers = [shown]
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        written = logging.FileHandler(file, encoding="utf-8")
        written.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        root.addHandler(written)
