"""Commands about slides: what they are, and how well this machine reads them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anlage.cli.application import Exit, app, exit_by, log_to, name_refused

if TYPE_CHECKING:
    from anlage.slides.indexing.index_run import IndexResult

MOST_WORKERS = 8


@app.command()
def index(
    slides: Annotated[
        list[str], typer.Argument(help="Slide files, folders, globs, s3:// or https:// URLs.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Catalogue to write (Parquet).")],
    labels: Annotated[
        Path | None, typer.Option(help="CSV to join by slide_id, or by the stem of `file`.")
    ] = None,
    mask_mpp: Annotated[
        float, typer.Option(min=0.5, max=100, help="Resolution of tissue masks, µm per pixel.")
    ] = 8,
    tissue: Annotated[
        str, typer.Option(help="Tissue method: otsu, hsv, luminance, clam, or a plug-in's.")
    ] = "otsu",
    tissue_weights: Annotated[
        Path | None, typer.Option(help="Weights of the tissue method, if it has any.")
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(help="Folder of masks that you drew (SLIDE_ID.geojson or .png); they win."),
    ] = None,
    add: Annotated[
        bool, typer.Option("--add", help="Keep the catalogue's slides that are not named now.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; one a core up to 8 if not given.")
    ] = None,
) -> None:
    """Make a catalogue of slides: size, resolution, tissue; bad slides are listed with a reason.

    The same command goes on after it was stopped, and reads new and changed slides only.
    """
    from anlage.slides.indexing.index import index_slides

    log_to(None)
    result = index_slides(
        slides,
        output,
        labels=labels,
        add=add,
        workers=workers or min(_n_cores(), MOST_WORKERS),
        mask_mpp=mask_mpp,
        tissue=tissue,
        tissue_weights=tissue_weights,
        masks=masks,
    )
    name_refused(result.refused)
    _name_unmatched(result)
    written = f"{result.n_accepted} slides in {output}" if result.catalogue else "nothing written"
    print(f"{written}, {len(result.refused)} refused; {result.n_read} read now")
    if result.catalogue is None:
        raise typer.Exit(Exit.FAILED)
    exit_by(result.refused)


def _name_unmatched(result: IndexResult) -> None:
    for lacking, names in (
        ("label without a slide", result.unmatched_labels),
        ("slide without a label", result.slides_without_labels),
        ("mask without a slide", result.unmatched_masks),
    ):
        for name in names:
            print(f"{lacking}: {name}")


def _n_cores() -> int:
    """Cores that this process may use, where the system says it."""
    may_use = getattr(os, "sched_getaffinity", None)
    return len(may_use(0)) if may_use else os.cpu_count() or 1
