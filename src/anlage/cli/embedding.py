"""Commands of the chain after pretraining: evaluate, report, and those of ``embed``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from anlage.cli.application import MAX_SEED, Exit, app, local_output, log_to
from anlage.errors import without_secrets

if TYPE_CHECKING:
    from anlage.embedding.slide_table import EmbedSlidesResult
    from anlage.encoders.slide_encoder import OpenSlideEncoder

Precision = Literal["auto", "fp32", "bf16", "fp16"]

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


def _table(output: Path) -> Path:
    if output.suffix != ".parquet":
        msg = f"needs a name that ends in .parquet, which it will be; got {output}."
        raise typer.BadParameter(msg)
    local_output(output)
    return output


@embed.command("slides")
def embed_slides_command(
    bags_folder: Annotated[str, typer.Option("--bags", help="Folder or URL of bags.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Table to write (.parquet).", callback=_table)
    ],
    encoder: Annotated[
        str | None,
        typer.Option(
            help="Slide encoder: RUN/encoder, a name that `anlage encoders` lists, or NAME=WEIGHTS."
        ),
    ] = None,
    pooling: Annotated[
        Literal["mean", "mean+std"] | None,
        typer.Option(help="Without encoder: mean (usual), or mean and standard deviation."),
    ] = None,
    patients: Annotated[
        str | None,
        typer.Option(help="Catalogue, or CSV of slide_id and patient_id: one row a patient too."),
    ] = None,
    device: Annotated[str, typer.Option(help="For the encoder: auto, cpu, cuda, cuda:N.")] = "auto",
    precision: Annotated[
        Precision,
        typer.Option(help="For the encoder: auto is bf16 on GPUs that have it, else fp32."),
    ] = "auto",
) -> None:
    """Embed each slide of a folder of bags into one row of a table, and each patient.

    By a slide encoder, or by the mean of its tiles' embeddings.
    """
    if encoder is not None and pooling is not None:
        msg = f"--pooling {pooling} is instead of an encoder; got both. Leave one out."
        raise typer.BadParameter(msg)
    if encoder is None and (device, precision) != ("auto", "auto"):
        msg = "--device and --precision are for an --encoder, and pooling has none. Leave them out."
        raise typer.BadParameter(msg)
    log_to(None)
    if encoder is not None:
        from anlage.embedding.encode_slides import encode_slides

        opened = _open_slide_encoder(encoder, device, precision)
        _tell_slides(encode_slides(opened, bags_folder, output, patients=patients), patients)
        return
    from anlage.embedding.embed_slides import embed_slides

    pooled = embed_slides(bags_folder, output, pooling=pooling or "mean", patients=patients)
    _tell_slides(pooled, patients)


def _open_slide_encoder(encoder: str, device: str, precision: Precision) -> OpenSlideEncoder:
    from anlage.encoders.open_slide_encoder import open_slide_encoder

    try:
        return open_slide_encoder(encoder, device=device, precision=precision)
    except ValueError as error:  # the device has no such arithmetic
        raise typer.BadParameter(str(error)) from error


def _tell_slides(result: EmbedSlidesResult, patients: str | None) -> None:
    for slide_id in result.empty:
        print(f"empty: {slide_id}: its bag holds no tile, so it has no row")
    for slide_id in result.unknown:
        print(f"no patient: {slide_id}: not in {patients}, so in no patient's row")
    for error in result.refused:
        print(without_secrets(f"refused: {error}"))
    kept = f" ({result.n_kept} of an earlier run)" if result.n_kept else ""
    print(f"{result.n_slides} slides{kept}: {result.output}")
    if result.patients_output is not None:
        print(f"{result.n_patients} patients: {result.patients_output}")
    if result.empty or result.unknown or result.refused:
        raise typer.Exit(Exit.SOME_REFUSED)


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
