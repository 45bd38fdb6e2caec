"""Commands about encoders: which have a name, and their weights fetched beforehand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anlage.cli.application import Exit, app, local_output, log_to

if TYPE_CHECKING:
    from anlage.encoders.hub import Hosted

encoders = typer.Typer(
    help="List encoders that have a name, or fetch the weights of one.", rich_markup_mode=None
)
app.add_typer(encoders, name="encoders")


@encoders.callback(invoke_without_command=True)
def list_encoders(
    context: typer.Context,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON list on standard output.")
    ] = False,
) -> None:
    """List the encoders that --encoder takes by name: what each takes, gives and allows."""
    if context.invoked_subcommand is not None:
        return
    from anlage.encoders.listing import encoder_rows

    rows = list(encoder_rows())
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    shown = ("name", "architecture", "takes", "mpp", "pooling", "width", "licence", "gated", "")
    lines = [shown]
    for row in rows:
        marks = [] if row["verified"] else ["unverified"]
        marks += [] if row["runs_on"] == "anlage" else ["needs --trust-remote-code"]
        marks += ["cached"] if row["cached"] else []
        lines.append(
            (
                row["name"],
                row["architecture"],
                f"{row['tile_px']} px" if row["takes"] == "tiles" else row["takes"],
                f"{row['mpp']:g}",
                row["pooling"],
                str(row["width"]),
                row["licence"],
                "gated" if row["gated"] else "",
                ", ".join(marks),
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        )
    print("others: FOLDER, NAME=WEIGHTS, timm:NAME@MPP, hf:OWNER/MODEL@MPP, file.py:function")


@encoders.command()
def fetch(
    name: Annotated[str, typer.Argument(help="A published encoder, such as uni.")],
    to: Annotated[
        Path | None,
        typer.Option(
            help="Folder to put the file in; the hub's cache if none.", callback=local_output
        ),
    ] = None,
) -> None:
    """Download an encoder's weights, for a node without network or to have them at hand."""
    from anlage.encoders.hub import fetch_file, tell_licence
    from anlage.encoders.presets import PRESETS
    from anlage.encoders.slide_presets import SLIDE_PRESETS

    log_to(None)
    published: dict[str, Hosted] = {**PRESETS, **SLIDE_PRESETS}
    preset = published.get(name)
    if preset is None or not preset.files:
        known = ", ".join(each for each, known in published.items() if known.files)
        what = "no published encoder" if preset is None else "runs by its authors' code"
        typer.echo(f"{name}: {what}. Those that can be fetched: {known}.", err=True)
        raise typer.Exit(Exit.WRONG_USAGE)
    tell_licence(preset)
    found = fetch_file(preset, to=to)
    print(f"{name}: {found.path}")
    if to is not None:
        print(f"use it as: --encoder {name}={found.path}")
