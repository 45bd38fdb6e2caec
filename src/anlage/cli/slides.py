"""Commands about slides: what they are, and how well this machine reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anlage.cli.application import app, exit_by, log_to, name_refused


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

    log_to(None)
    result = index_slides(slides, output, labels=labels, mask_mpp=mask_mpp)
    name_refused(result.refused)
    for name in result.unmatched_labels:
        print(f"label without a slide: {name}")
    for name in result.slides_without_labels:
        print(f"slide without a label: {name}")
    written = f"{result.n_accepted} slides in {output}" if result.catalogue else "nothing written"
    print(f"{written}, {len(result.refused)} refused")
    exit_by(result.refused)
