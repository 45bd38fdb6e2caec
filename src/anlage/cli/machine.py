"""Commands about this machine: what it can read, and how fast."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

from anlage.cli.application import MOST_THREADS, Exit, app, log_to

MOST_PER_REGION = 256  # as recipes allow

bench = typer.Typer(
    help="Measure this machine on your slides.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(bench, name="bench")


@app.command()
def doctor(
    slides: Annotated[
        list[str] | None, typer.Argument(help="Slides to open: files, folders, URLs, catalogue.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what this machine can read and how fast; ends with 1 if anything is broken."""
    from anlage import doctor as doctors

    log_to(None)
    findings = doctors.examine(slides or ())
    if as_json:
        print(json.dumps(doctors.as_json(findings), indent=1))
    else:
        for line in doctors.as_lines(findings):
            print(line)
    if not doctors.is_well(findings):
        raise typer.Exit(Exit.FAILED)


@bench.command("io")
def bench_io(
    slides: Annotated[
        list[str], typer.Argument(help="Catalogue (.parquet), slide files, folders, globs or URLs.")
    ],
    mpp: Annotated[float, typer.Option(min=0.01, help="Resolution of tiles, µm per pixel.")] = 0.5,
    tile_px: Annotated[int, typer.Option(min=1, help="Edge of tiles, pixels.")] = 256,
    n: Annotated[int, typer.Option("-n", "--n", min=1, help="Tiles that one thread reads.")] = 400,
    threads: Annotated[
        int, typer.Option(min=1, max=MOST_THREADS, help="Threads of the loader.")
    ] = 2,
    per_region: Annotated[
        int,
        typer.Option(
            min=1, max=MOST_PER_REGION, help="Tiles cut from one decoded region; 1, 4 and 16 suit."
        ),
    ] = 1,
    decode: Annotated[
        Literal["scaled", "full"], typer.Option(help="Let JPEG be decoded at 1/2 to 1/8, or not.")
    ] = "scaled",
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Tiles a second of a training run, to wait for.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; the median is told.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure how fast tiles come from slides, beside what the decoder alone could do."""
    from anlage.bench.io import measure_io
    from anlage.bench.io_report import IoSettings

    log_to(None)
    settings = IoSettings(
        mpp=mpp,
        tile_px=tile_px,
        n=n,
        threads=threads,
        per_region=per_region,
        decode=decode,
        rate=rate,
        rounds=rounds,
    )
    report = measure_io(slides, settings)
    if as_json:
        print(json.dumps(report.as_json(), indent=1))
    else:
        for line in report.as_lines():
            print(line)
        for uri, reason in report.refused:
            print(f"refused: {uri}: {reason}")
    if report.refused:
        raise typer.Exit(Exit.SOME_REFUSED)
