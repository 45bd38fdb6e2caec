"""``anlage embed tiles``: its options, and what it says at the end."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from anlage.cli.application import MOST_THREADS, Exit, log_to, name_refused, named_output
from anlage.cli.embedding import embed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anlage.embedding.embed_tiles import EmbedResult, OpenEncoder
    from anlage.embedding.ray_workers import RayOptions
    from anlage.embedding.settings import EmbedSettings
    from anlage.slides.catalogue import Catalogue
    from anlage.slides.indexing.found_slide import Refused

MOST_PX = MOST_TILES = 2**16  # beyond any; what a slip of the finger gives is refused
Encoders = Annotated[
    list[str],
    typer.Option(
        "--encoder",
        help="RUN/encoder, or a name of `anlage encoders`, timm:NAME@MPP, hf:REPO@MPP. Given "
        "several times, all embed in one reading, each into a folder of its own.",
    ),
]
Slides = Annotated[
    str, typer.Option(help="Catalogue (.parquet), or a folder, file or glob to index first.")
]
Output = Annotated[
    str,
    typer.Option(
        "-o",
        "--output",
        help="Folder for one HDF5 a slide, or URL for one Zarr each.",
        callback=named_output,
    ),
]
Mpp = Annotated[
    float | None,
    typer.Option(min=0.01, max=1000, help="µm per pixel of the tiles; the encoder's if none."),
]
TilePx = Annotated[
    int | None,
    typer.Option(min=1, max=MOST_PX, help="Edge of the tiles, pixels; the encoder's if none."),
]
OverlapPx = Annotated[
    int | None,
    typer.Option(min=0, max=MOST_PX, help="Pixels that neighbouring tiles share; 0 if none."),
]
StridePx = Annotated[
    int | None,
    typer.Option(min=1, max=MOST_PX, help="Step of the grid in pixels, in place of --overlap-px."),
]
MinTissue = Annotated[float, typer.Option(min=0, max=1, help="Smallest tissue fraction of a tile.")]
Tissue = Annotated[
    str | None,
    typer.Option(help="Tissue method, as of `anlage index`; the catalogue's own if none."),
]
BatchSize = Annotated[int, typer.Option(min=1, max=MOST_TILES, help="Tiles a forward pass.")]
Colours = Annotated[
    Literal["stored", "srgb"] | None,
    typer.Option(help="Colours by the slides' ICC profiles, or as stored; the encoder's."),
]
Devices = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N; several as cuda:0,cuda:1.")]
Arithmetic = Annotated[
    Literal["auto", "fp32", "bf16", "fp16"],
    typer.Option(help="Arithmetic; auto is bf16 on CUDA that has it, else fp32."),
]
Threads = Annotated[int, typer.Option(min=1, max=MOST_THREADS, help="Threads that read tiles.")]
PatchTokens = Annotated[
    bool, typer.Option("--patch-tokens", help="Also write SLIDE.patch_tokens.npy, float16.")
]
RemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let the encoder's repository run its code.")
]
OneShard = Annotated[
    str | None, typer.Option(help="i/n: this part of the catalogue alone, for n jobs.")
]
Engine = Annotated[
    Literal["local", "ray"], typer.Option(help="This process, or workers of a Ray cluster.")
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        help="auto, HOST:PORT or local (this machine alone); auto if it answers, else local."
    ),
]
Workers = Annotated[int | None, typer.Option(min=1, help="Ray: how many; as many as fit if none.")]
CpusPerWorker = Annotated[
    float | None,
    typer.Option(min=0.01, max=MOST_THREADS, help="Ray: processors each reserves; --threads."),
]
GpusPerWorker = Annotated[
    float | None,
    typer.Option(min=0, max=64, help="Ray: GPUs each reserves, 0.5 for two a GPU; 1 if there is."),
]


@embed.command("tiles")
def embed_tiles_command(
    encoder: Encoders,
    slides: Slides,
    output: Output,
    mpp: Mpp = None,
    tile_px: TilePx = None,
    overlap_px: OverlapPx = None,
    stride_px: StridePx = None,
    min_tissue: MinTissue = 0.25,
    tissue: Tissue = None,
    batch_size: BatchSize = 64,
    colour: Colours = None,
    device: Devices = "auto",
    precision: Arithmetic = "auto",
    threads: Threads = 2,
    patch_tokens: PatchTokens = False,
    shard: OneShard = None,
    trust_remote_code: RemoteCode = False,
    engine: Engine = "local",
    ray_address: RayAddress = None,
    workers: Workers = None,
    cpus_per_worker: CpusPerWorker = None,
    gpus_per_worker: GpusPerWorker = None,
) -> None:
    """Embed every tissue tile of every slide: one bag a slide; always resumes.

    Runs that are started in one folder share its slides. Exit code 3 says that a slide was refused,
    holds no tile, or is still with another run.
    """
    from anlage.embedding.embed_tiles import OpenEncoder
    from anlage.slides.indexing.index import catalogue_of

    asked: dict[str, Any] = {"address": ray_address, "workers": workers}
    asked |= {"cpus_per_worker": cpus_per_worker, "gpus_per_worker": gpus_per_worker}
    on_ray = _options_of(engine, asked, n_encoders=len(encoder), device=device)
    settings = _settings(
        mpp=mpp,
        tile_px=tile_px,
        stride_px=stride_px,
        overlap_px=overlap_px,
        min_tissue=min_tissue,
        batch_size=batch_size,
        threads=threads,
        colour=colour,
        patch_tokens=patch_tokens,
        shard=_shard(shard, slides),
    )
    encoders, how = _named(encoder), OpenEncoder(device, precision, trust_remote_code)
    log_to(_log_of(output, slides))
    catalogue, unusable = catalogue_of(slides, folder=output, tissue=tissue)
    name_refused(unusable)
    made = _embed(encoders, catalogue, output, settings=settings, how=how, on_ray=on_ray)
    _say_all(made, unusable)


def _embed(
    encoders: Mapping[str, str],
    catalogue: Catalogue,
    output: str,
    *,
    settings: EmbedSettings,
    how: OpenEncoder,
    on_ray: RayOptions | None,
) -> dict[str, EmbedResult]:
    """Embed here or on a cluster; gives what became of it by the encoder's folder."""
    from anlage.embedding.settings import OverlapError

    try:
        if on_ray is not None:
            from anlage.embedding.ray_cluster import embed_on_ray

            made = partial(embed_on_ray, settings=settings, how=how, options=on_ray)
            return {name: made(encoder, catalogue, output) for name, encoder in encoders.items()}
        from anlage.embedding.embed_tiles import embed_together

        outputs = {name: f"{output}/{name}" if name else output for name in encoders}
        how = replace(how, device=str(how.device).split(","))
        return embed_together(encoders, catalogue, outputs, settings=settings, how=how)
    except OverlapError as error:
        raise typer.BadParameter(str(error)) from error


def _options_of(
    engine: str, asked: Mapping[str, Any], *, n_encoders: int, device: str
) -> RayOptions | None:
    """Those for Ray, if that is asked for; what one engine does not have is refused."""
    from anlage.embedding.ray_workers import RayOptions

    if engine == "local":
        if any(value is not None for value in asked.values()):
            msg = "--ray-address, --workers and what a worker reserves go with --engine ray."
            raise typer.BadParameter(msg)
        return None
    if n_encoders > 1:
        msg = f"--engine ray takes one --encoder; got {n_encoders}. Run it once for each."
        raise typer.BadParameter(msg)
    if "," in device:
        msg = f"--engine ray takes one --device for each worker; got {device}. Use --workers."
        raise typer.BadParameter(msg)
    return RayOptions(**asked)


def _log_of(output: str, slides: str) -> Path | None:
    """Where the log goes: beside the bags, if they go to a folder."""
    from anlage.slides.storage.location import is_remote

    if not is_remote(output):
        return Path(output) / "anlage.log"
    if not slides.endswith(".parquet"):
        msg = "-o at a URL takes a catalogue (.parquet) as --slides. Make one: anlage index."
        raise typer.BadParameter(msg)
    return None


def _settings(**values: object) -> EmbedSettings:
    from anlage.embedding.settings import EmbedSettings

    try:
        return EmbedSettings(**values)  # type: ignore[arg-type]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _shard(text: str | None, slides: str) -> object:
    from anlage.embedding.shard import Shard

    if text is None:
        return None
    if not slides.endswith(".parquet"):
        msg = "--shard takes a catalogue (.parquet), which all jobs share. Make one: anlage index."
        raise typer.BadParameter(msg)
    try:
        return Shard.parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _named(encoders: Sequence[str]) -> dict[str, str]:
    """Encoders by the folder below the output that each gets: one alone gets the output itself."""
    if len(encoders) == 1:
        return {"": encoders[0]}
    named: dict[str, str] = {}
    for encoder in encoders:
        name = _name_of(encoder)
        if name in named:
            msg = (
                f"--encoder {named[name]} and --encoder {encoder} would both write to {name}/. "
                "Embed them one after the other, each with an output of its own."
            )
            raise typer.BadParameter(msg)
        named[name] = encoder
    return named


def _name_of(encoder: str) -> str:
    """``uni`` of ``uni`` and of ``uni=FILE``, ``a`` of ``runs/a/encoder``."""
    place = Path(encoder)
    if place.is_dir():
        place = place.absolute()
        return place.parent.name if place.name == "encoder" else place.name
    return re.sub(r"[^\w.@-]+", "-", encoder.partition("=")[0]).strip("-.")


def _say(name: str, result: EmbedResult) -> None:
    name_refused(result.refused)
    for slide_id in result.empty:
        print(f"empty: {slide_id}: no tile holds enough tissue")
    for slide_id in result.elsewhere:
        print(f"elsewhere: {slide_id}: another run is embedding it")
    rate = result.n_tiles / result.seconds if result.seconds else 0
    made = f" ({result.n_tiles} tiles, {rate:.0f} a second)" if result.n_tiles else ""
    elsewhere = f"{len(result.elsewhere)} with another run, " if result.elsewhere else ""
    print(
        f"{name and name + ': '}{len(result.done)} slides embedded{made}, {len(result.skipped)} "
        f"already there, {len(result.empty)} empty, {elsewhere}{len(result.refused)} refused; "
        f"bags: {result.output}"
    )


def _say_all(results: Mapping[str, EmbedResult], unusable: Sequence[Refused]) -> None:
    """Tell of every encoder; code 3 unless every slide has its bag with tiles in it."""
    for name, result in results.items():
        _say(name, result)
    if unusable or any(r.refused or r.empty or r.elsewhere for r in results.values()):
        raise typer.Exit(Exit.SOME_REFUSED)
