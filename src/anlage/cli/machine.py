"""Commands about this machine: what it can read, and how fast."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from anlage.cli.application import Exit, app


@app.command()
def doctor(
    slides: Annotated[
        list[str] | None, typer.Argument(help="Slides to open as well: files, folders, URLs.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what this machine can read and how fast; ends with 1 if anything is broken."""
    from anlage import doctor as doctors

    findings = doctors.examine(slides or ())
    if as_json:
        print(json.dumps(doctors.as_json(findings), indent=1))
    else:
        for line in doctors.as_lines(findings):
            print(line)
    if not doctors.is_well(findings):
        raise typer.Exit(Exit.FAILED)
