"""Commands about this machine: what it can read, and how fast."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from anlage.cli.application import MOST_THREADS, Exit, app, log_to

if TYPE_CHECKING:
    from anlage.doctor.findings import Finding

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
    distributed: Annotated[
        bool, typer.Option("--distributed", help="Check the ranks of a job (under torchrun).")
    ] = False,
    run: Annotated[
        Path | None, typer.Option(help="Folder of the run: is it shared, how fast is it written?")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Tiles a second that all ranks need of SLIDES.")
    ] = None,
    threads: Annotated[
        int, typer.Option(min=1, max=MOST_THREADS, help="Threads of each rank's loader.")
    ] = 2,
    mpp: Annotated[float, typer.Option(min=0.01, help="Resolution of tiles, µm per pixel.")] = 0.5,
    tile_px: Annotated[int, typer.Option(min=1, help="Edge of tiles, pixels.")] = 256,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds to wait for a rank that is missing.")
    ] = 60.0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what this machine can read and how fast; ends with 1 if anything is broken.

    The options from --run to --device are those of --distributed.
    """
    log_to(None)
    if distributed:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # else traces of C++ hide what we say
        logging.getLogger("anlage").setLevel(logging.WARNING)
        from anlage.bench.io_report import IoSettings
        from anlage.doctor.job import JobCheck, examine_job

        reading = IoSettings(n=512, rounds=1, mpp=mpp, tile_px=tile_px, threads=threads)
        report = examine_job(
            JobCheck(
                device=device,
                timeout_s=timeout,
                run=run,
                slides=slides or (),
                rate=rate,
                reading=reading,
            )
        )
        _tell(report.findings, as_json=as_json, speaks=report.speaks)
        return
    if run is not None or rate is not None:
        msg = "--run and --rate need --distributed."
        raise typer.BadParameter(msg)
    from anlage.doctor.machine import examine

    _tell(examine(slides or ()), as_json=as_json)


def _tell(findings: Sequence[Finding], *, as_json: bool, speaks: bool = True) -> None:
    from anlage.doctor import findings as doctors

    if speaks and as_json:
        print(json.dumps(doctors.as_json(findings), indent=1))
    elif speaks:
        for line in doctors.as_lines(findings):
            print(line)
    if speaks and not doctors.is_well(findings):
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


@bench.command("train")
def bench_train(
    recipe: Annotated[str, typer.Option(help="Recipe's name, or a YAML file.")] = "tiny",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Change one value: dotted.key=value.")
    ] = None,
    slides: Annotated[
        str | None, typer.Option(help="Catalogue (.parquet) or slides; bundled ones if not given.")
    ] = None,
    source: Annotated[
        Literal["slides", "tensors"],
        typer.Option("--from", help="Read slides, or take random tiles on the device."),
    ] = "slides",
    steps: Annotated[int, typer.Option(min=1, help="Steps that are timed.")] = 20,
    warm_up: Annotated[int, typer.Option(min=1, help="Steps before them.")] = 5,
    threads: Annotated[
        int, typer.Option(min=1, max=MOST_THREADS, help="Threads of each rank that read tiles.")
    ] = 2,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure how fast a recipe trains, what it holds, and where the time of a step goes."""
    if slides is not None and source == "tensors":
        msg = "--slides and --from tensors: choose one."
        raise typer.BadParameter(msg)
    from anlage.bench.train import measure_training
    from anlage.bench.train_report import TrainSettings
    from anlage.distributed import process_group

    log_to(None)
    settings = TrainSettings(
        recipe=recipe,
        overrides=tuple(overrides or ()),
        source=source,
        steps=steps,
        warm_up=warm_up,
        threads=threads,
        device=device,
    )
    with process_group(device) as ranks:
        report = measure_training(settings, slides, ranks=ranks)
    if ranks.is_main and as_json:
        print(json.dumps(report.as_json(), indent=1))
    elif ranks.is_main:
        for line in report.as_lines():
            print(line)
