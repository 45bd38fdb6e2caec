"""The command that runs the whole chain on the bundled samples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anlage.cli.application import MAX_SEED, Exit, app, exit_by, log_to, name_refused


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
    log_to(out / "anlage.log")
    result = run_demo(out, seed=seed, steps=steps, slides=slides)
    name_refused(result.refused)
    if result.report is None:
        print(f"stopped after step {result.steps}; the same command goes on from there")
        raise typer.Exit(Exit.INTERRUPTED)
    for line in result.summary:
        print(line)
    print(f"report: {result.report}")
    exit_by(result.refused)
