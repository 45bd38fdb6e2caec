"""The command that curates a pool of tiles into a list to train on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anlage.cli.application import MAX_SEED, MOST_THREADS, Exit, app, log_to, name_refused
from anlage.errors import without_secrets

if TYPE_CHECKING:
    from anlage.curation.curate import Curation
    from anlage.slides.catalogue import Catalogue
    from anlage.tiles.filters import TileFilters

MOST_SHOWN = 100  # clusters on the page; every one has its PNG


Bags = Annotated[str, typer.Argument(help="Folder or URL of bags (`anlage embed tiles`).")]
Slides = Annotated[str, typer.Option(help="Catalogue (.parquet), or slides to index first.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="Folder for list and pictures.")]
Split = Annotated[
    str | None, typer.Option(help="Only slides with this value of the catalogue's split.")
]
TissueColour = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Least share of pixels with the colour of stained tissue."),
]
Pen = Annotated[
    float | None, typer.Option(min=0, max=1, help="Greatest share of pixels of marker ink.")
]
Sharpness = Annotated[
    float | None,
    typer.Option(
        min=0.001,
        help="Least variance of the Laplacian at 1 um a px, or the tiles' own if coarser; try 50.",
    ),
]
Dedup = Annotated[
    float | None, typer.Option(help="Drop tiles with this cosine or more to another; try 0.98.")
]
DedupParts = Annotated[
    int, typer.Option(min=1, help="Clusters within which alone tiles are compared, for millions.")
]
HeldOut = Annotated[
    str | None, typer.Option(help="Bags of a test set: its patients and likes are left out.")
]
HeldOutCosine = Annotated[
    float, typer.Option(help="Cosine to a held-out tile from which a tile is left out.")
]
Levels = Annotated[
    str,
    typer.Option(help="Clusters of each level, finest first: 200,20; or auto; or none."),
]
Resamplings = Annotated[
    int, typer.Option(min=0, help="Times that each level is resampled; 0: plain k-means.")
]
Query = Annotated[
    str | None, typer.Option(help="Bags of a query set: only tiles near its own are listed.")
]
Nearest = Annotated[int, typer.Option("--k", min=1, help="Tiles that each query finds.")]
PerCluster = Annotated[
    int | None, typer.Option(min=1, help="Most tiles found that a finest cluster keeps.")
]
Sample = Annotated[
    int | None,
    typer.Option(min=1, help="Tiles to list, in equal shares of clusters; else all, weighted."),
]
Seed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of clusters and sample.")]
Threads = Annotated[int, typer.Option(min=1, max=MOST_THREADS, help="Threads that read tiles.")]


@app.command("curate")
def curate_command(
    bags: Bags,
    slides: Slides,
    output: Output,
    split: Split = None,
    tissue_colour: TissueColour = None,
    pen: Pen = None,
    sharpness: Sharpness = None,
    dedup: Dedup = None,
    dedup_parts: DedupParts = 1,
    held_out: HeldOut = None,
    held_out_cosine: HeldOutCosine = 0.95,
    levels: Levels = "auto",
    resamplings: Resamplings = 10,
    query: Query = None,
    k: Nearest = 5,
    per_cluster: PerCluster = None,
    sample: Sample = None,
    seed: Seed = 0,
    threads: Threads = 2,
) -> None:
    """Choose tiles to train on: drop duplicates, cluster, find the like of queries, balance.

    Writes a tile list that a recipe takes as tiles.list, and a contact sheet of every cluster.
    """
    from anlage.curation.curate import CurateSettings, curate, refuse_existing
    from anlage.slides.indexing.index import catalogue_of

    settings = CurateSettings(
        filters=_filters(tissue_colour=tissue_colour, pen=pen, sharpness=sharpness),
        dedup=dedup,
        dedup_parts=dedup_parts,
        held_out_cosine=held_out_cosine,
        levels=_levels(levels),
        n_resamplings=resamplings,
        k=k,
        per_cluster=per_cluster,
        n_sample=sample,
        seed=seed,
    )
    refuse_existing(output)
    log_to(output / "anlage.log")
    catalogue, unusable = catalogue_of(slides, folder=output)
    where = {"query": query, "held_out": held_out, "split": split}
    try:
        made = curate(bags, catalogue, output, settings=settings, threads=threads, **where)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    name_refused(unusable)
    _tell(made)
    _show(made, catalogue, output)
    if unusable or made.refused:
        raise typer.Exit(Exit.SOME_REFUSED)


def _tell(made: Curation) -> None:
    """Print what became of the tiles, and whose they are."""
    for name, reason in made.refused:
        print(without_secrets(f"refused: {name}: {reason}"))
    for name in made.empty:
        print(f"empty: {name}: its bag holds no tile")
    if made.pool.n_doubled:
        print(f"{made.pool.n_doubled} tiles left out: another of the same bag lies at their place")
    for name, n in made.rejected.items():
        print(f"{n} tiles rejected by the filter {name}")
    for step, n in made.counts.items():
        print(f"{n} tiles {step}")
    print(f"list: {made.output}")


def _show(made: Curation, catalogue: Catalogue, output: Path) -> None:
    """Write the contact sheets and the page."""
    from anlage.curation.contact_sheet import look_at_clusters, write_sheets
    from anlage.report.curation_page import write_curation_page

    looks = look_at_clusters(made, catalogue)
    sheets = write_sheets(looks, output / "clusters")
    largest = sorted(looks, key=lambda look: (-look.n_tiles, look.number))[:MOST_SHOWN]
    page = write_curation_page(
        made,
        sorted(largest, key=lambda look: look.number),
        output / "curation.html",
        n_clusters=len(looks),
    )
    print(f"{len(sheets)} contact sheets: {output / 'clusters'}")
    print(f"page: {page}")


def _filters(
    *, tissue_colour: float | None, pen: float | None, sharpness: float | None
) -> TileFilters:
    from anlage.tiles.filters import BlurFilter, HsvTissueFilter, PenFilter, TileFilters

    return TileFilters(
        hsv=None if tissue_colour is None else HsvTissueFilter(min_share=tissue_colour),
        blur=None if sharpness is None else BlurFilter(min_variance=sharpness),
        pen=None if pen is None else PenFilter(max_share=pen),
    )


def _levels(text: str) -> tuple[int, ...] | None:
    if text in {"auto", "none"}:
        return None if text == "auto" else ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        msg = f"--levels needs whole numbers such as 200,20, or auto or none; got {text!r}."
        raise typer.BadParameter(msg) from error
