"""Commands about tissue masks: look at them, take them elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from anlage.cli.application import app, log_to

masks = typer.Typer(
    help="Look at tissue masks, export them.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(masks, name="masks")


@masks.command()
def show(
    catalogue: Annotated[Path, typer.Argument(help="Catalogue (.parquet).")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the pictures.")],
) -> None:
    """Draw every slide beside its mask on contact sheets (PNG), to check them by eye."""
    from anlage.slides.catalogue import Catalogue
    from anlage.slides.mask_sheets import write_mask_sheets

    log_to(None)
    slides = Catalogue.open(catalogue)
    sheets = write_mask_sheets(slides, output)
    print(f"{len(slides)} masks on {len(sheets)} sheets in {output}")


@masks.command()
def export(
    catalogue: Annotated[Path, typer.Argument(help="Catalogue (.parquet).")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder, one file a slide.")],
    mask_format: Annotated[
        Literal["geojson", "png"],
        typer.Option("--format", help="geojson (QuPath opens it) or png."),
    ] = "geojson",
    force: Annotated[
        bool, typer.Option("--force", help="Write over files that are there already.")
    ] = False,
) -> None:
    """Write masks as files: to correct in QuPath, and to give back by `anlage index --masks`."""
    from anlage.slides.catalogue import Catalogue
    from anlage.slides.mask_export import export_masks

    log_to(None)
    done = export_masks(Catalogue.open(catalogue), output, mask_format=mask_format, force=force)
    kept = f", {done.n_kept} kept that were there (--force writes over them)" if done.n_kept else ""
    print(f"{done.n_written} masks written to {output}{kept}")
