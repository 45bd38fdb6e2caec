"""Commands of the chain after pretraining: evaluate, report, and those of ``embed``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anlage.cli.application import MAX_SEED, app, log_to

embed = typer.Typer(help="Embed with an encoder.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(embed, name="embed")


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
