"""Commands about bags: list, verify, convert, adopt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from anlage.cli.application import Exit, app, log_to, named_output
from anlage.errors import without_secrets

if TYPE_CHECKING:
    from anlage.bags.foreign import Given
    from anlage.encoders.tile_encoder import TileEncoder
    from anlage.errors import AnlageError

bags = typer.Typer(
    help="List, check and convert bags of tile embeddings.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(bags, name="bags")

Folder = Annotated[str, typer.Argument(help="Folder of bags, or s3://, gs://, az:// URL.")]
Slides = Annotated[
    str | None, typer.Option(help="Catalogue (.parquet) of the slides: resolution, fingerprint.")
]
Output = Annotated[
    str,
    typer.Option("-o", "--output", help="Folder, or a URL for Zarr bags.", callback=named_output),
]
EncoderName = Annotated[
    str | None, typer.Option(help="What the encoder is called, where the files do not say it.")
]
TilePx = Annotated[int | None, typer.Option(min=1, help="Tile edge in pixels, likewise.")]
Mpp = Annotated[float | None, typer.Option(min=0.01, help="Tiles' resolution, um a px, likewise.")]
Coords = Annotated[
    Path | None, typer.Option(help="Folder with the HDF5 files of coordinates (CLAM's patches).")
]


@bags.command("list")
def list_command(
    folder: Folder,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Summarise a folder of bags: slides, tiles, width, encoder, resolution, bytes."""
    from anlage.bags.summary import summarise_bags

    log_to(None)
    summary = summarise_bags(folder)
    if as_json:
        print(json.dumps(summary.as_json(), indent=1))
    else:
        for bag in summary.bags:
            print(
                f"{bag.slide_id}: {bag.n_tiles} tiles x {bag.width}, {bag.encoder}, "
                f"{bag.tile_px} px at {bag.mpp:g} um/px, {_size(bag.n_bytes)}"
            )
        for error in summary.refused:
            print(without_secrets(f"refused: {error}"))
        print(
            f"{len(summary.bags)} bags, {summary.n_tiles} tiles, {_size(summary.n_bytes)}; "
            f"encoders: {', '.join(summary.encoders) or 'none'}"
        )
    if summary.refused:
        raise typer.Exit(Exit.SOME_REFUSED)


def _size(n_bytes: float) -> str:
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} GB"


@bags.command("verify")
def verify_command(
    folder: Folder,
    slides: Annotated[
        str | None, typer.Option(help="Catalogue to compare with: slides, tissue, missing bags.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Encoder that the bags should be of: a folder or a name.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find damaged, half-written, stale, missing and mixed-encoder bags (exit code 3 if any)."""
    from dataclasses import asdict

    from anlage.bags.verify import verify_bags
    from anlage.slides.catalogue import Catalogue

    log_to(None)
    fingerprint = None if encoder is None else _load(encoder, "cpu").fingerprint
    catalogue = None if slides is None else Catalogue.open(slides)
    result = verify_bags(folder, slides=catalogue, encoder_fingerprint=fingerprint)
    if as_json:
        print(json.dumps(asdict(result), indent=1))
    else:
        for found in result.findings:
            print(without_secrets(f"{found.kind}: {found.place}: {found.reason}"))
        n_bad = len(result.findings)
        print(f"{result.n_bags} bags read, {result.n_tiles} tiles; {n_bad} findings")
    if result.findings:
        raise typer.Exit(Exit.SOME_REFUSED)


@bags.command("convert")
def convert_command(
    source: Annotated[str, typer.Argument(help="A file, a folder with one a slide, or a URL.")],
    to: Annotated[
        Literal["hdf5", "zarr", "clam", "stamp", "anndata", "spatialdata", "parquet"],
        typer.Option(help="What to write."),
    ],
    output: Output,
    slides: Slides = None,
    coords: Coords = None,
    encoder_name: EncoderName = None,
    tile_px: TilePx = None,
    mpp: Mpp = None,
    table: Annotated[str | None, typer.Option(help="Table of SpatialData: NAME_tiles.")] = None,
) -> None:
    """Convert bags to and from CLAM, TRIDENT, STAMP, AnnData, SpatialData, Parquet and Zarr."""
    from anlage.bags.convert import convert_bags

    log_to(None)
    given = _given(slides, encoder_name=encoder_name, tile_px=tile_px, mpp=mpp)
    result = convert_bags(source, output, to=to, given=given, coords=coords, table=table)
    print(f"{len(result.done)} bags converted, {len(result.refused)} refused; {to}: {output}")
    _end_by(result.refused, n_done=len(result.done))


@bags.command("adopt")
def adopt_command(
    folder: Annotated[
        Path, typer.Argument(help="Output of TRIDENT (job, grid or features folder) or of CLAM.")
    ],
    slides: Annotated[str, typer.Option(help="Catalogue (.parquet) of the slides.")],
    output: Output,
    encoder: Annotated[
        str | None,
        typer.Option(help="Encoder to compare with: a folder or a name. Without one: no check."),
    ] = None,
    coords: Coords = None,
    encoder_name: EncoderName = None,
    tile_px: TilePx = None,
    mpp: Mpp = None,
    check: Annotated[int, typer.Option(min=1, help="Tiles to embed again.")] = 50,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Take over TRIDENT's or CLAM's features, if embedding some tiles again gives the same."""
    from anlage.embedding.adopt_bags import adopt_bags, verdict_lines

    log_to(None)
    given = _given(slides, encoder_name=encoder_name, tile_px=tile_px, mpp=mpp)
    loaded = None if encoder is None else _load(encoder, device)
    result = adopt_bags(folder, output, given=given, encoder=loaded, coords=coords, n_tiles=check)
    for line in verdict_lines(result):
        print(line)
    if result.agreement is not None and not result.agreement.agrees:
        print("nothing written")
        raise typer.Exit(Exit.FAILED)
    print(f"{len(result.done)} bags of {result.tool}'s written to {output}")
    _end_by(result.refused, n_done=len(result.done))


def _given(
    slides: str | None, *, encoder_name: str | None, tile_px: int | None, mpp: float | None
) -> Given:
    from anlage.bags.foreign import Given
    from anlage.slides.catalogue import Catalogue

    catalogue = None if slides is None else Catalogue.open(slides)
    return Given(slides=catalogue, encoder_name=encoder_name, tile_px=tile_px, mpp=mpp)


def _load(encoder: str, device: str) -> TileEncoder:
    from anlage.encoders.open_encoder import open_encoder

    return open_encoder(encoder, device=device)


def _end_by(refused: Sequence[AnlageError], *, n_done: int) -> None:
    for error in refused:
        print(without_secrets(f"refused: {error}"))
    if refused:
        raise typer.Exit(Exit.SOME_REFUSED if n_done else Exit.FAILED)
