"""The command that shows where a slide model looks on a slide."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from anlage.cli.application import app, local_output, log_to

SHOWN, MOST_SHOWN = 12, 200  # tiles of a side of the contact sheet


@app.command("explain-slide")
def explain_slide_command(
    slide_id: Annotated[str, typer.Argument(help="The slide, by its name among the bags.")],
    model: Annotated[
        str,
        typer.Option(help="Slide model such as RUN/fold-0/model, or slide encoder (folder, name)."),
    ],
    bags: Annotated[str, typer.Option(help="Folder or URL of bags that `embed tiles` wrote.")],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="Folder for files and page.", callback=local_output),
    ],
    slides: Annotated[
        Path | None, typer.Option(help="Catalogue of the slide, for its pixels.")
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Block of the slide encoder whose attention to show, from 1; the last that runs.",
        ),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(
            min=0, max=MOST_SHOWN, help="Top and bottom tiles to show, each; 12 with --slides."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Show where a slide model looks: heatmaps, GeoJSON, heads, top and bottom tiles, a page."""
    log_to(None)
    if top and slides is None:
        msg = f"--top {top} needs pixels of the slide; got no catalogue. Name one with --slides."
        raise typer.BadParameter(msg)
    shown = SHOWN if top is None else top
    _explain(slide_id, model, bags, output, slides=slides, layer=layer, shown=shown, device=device)


def _explain(
    slide_id: str,
    model: str,
    bags: str,
    output: Path,
    *,
    slides: Path | None,
    layer: int | None,
    shown: int,
    device: str,
) -> None:
    from anlage.explain.slide_explanation import (
        explain_slide,
        open_explained,
        open_slide_of,
        read_one_bag,
    )
    from anlage.explain.slide_files import write_slide_files
    from anlage.explain.slide_folder import earlier_files
    from anlage.report.slide_explain_page import write_slide_explain_page
    from anlage.slides.catalogue import Catalogue

    catalogue = None if slides is None else Catalogue.open(slides)
    chosen = read_one_bag(bags, slide_id)
    earlier_files(output, slide_id)  # refuses a folder of another slide before the model runs
    with nullcontext() if catalogue is None else open_slide_of(catalogue, chosen.bag) as slide:
        opened = open_explained(model, device=device)
        try:
            explanation = explain_slide(opened, chosen, layer=layer)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        written = write_slide_files(explanation, output, slide=slide, n_shown=shown)
    page = write_slide_explain_page(explanation, written, output / "explain.html")
    print(f"{len(written.files)} files: {output}")
    print(f"page: {page}")
