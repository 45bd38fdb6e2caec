"""The command that shows what an encoder sees of a picture or a place of a slide."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anlage.cli.application import app, local_output, log_to

LARGEST_PX = 2**13  # attention over its patches would already need hundreds of gigabytes


Output = Annotated[
    Path,
    typer.Option("-o", "--output", help="Folder for pictures and page.", callback=local_output),
]


@app.command()
def explain(
    image: Annotated[str, typer.Argument(help="A picture; or with --at a slide, local or remote.")],
    encoder: Annotated[str, typer.Option(help="Encoder folder such as RUN/encoder, or a name.")],
    output: Output,
    at: Annotated[
        str | None, typer.Option(help="Corner X,Y of the field in the slide, level-0 pixels.")
    ] = None,
    mpp: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=1000,
            help="µm per pixel: of the picture, or that the slide is read at; the encoder's.",
        ),
    ] = None,
    px: Annotated[
        str, typer.Option(help="Sizes of the image given to the encoder, multiples of its patch.")
    ] = "224,448,896,1344",
    attention: Annotated[
        bool, typer.Option("--attention", help="Attention of the last block, by head.")
    ] = False,
    rollout: Annotated[
        bool, typer.Option("--rollout", help="Attention rollout through all blocks.")
    ] = False,
    pca: Annotated[bool, typer.Option("--pca", help="PCA of the patch tokens.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Show what an encoder looks at: attention by head, rollout, PCA, from 224 to 1,344 px.

    Without --attention, --rollout or --pca all three are made.
    """
    from anlage.encoders.open_encoder import open_encoder
    from anlage.explain.explanation import KINDS, explain_field
    from anlage.explain.field import read_field
    from anlage.explain.pictures import write_pictures
    from anlage.report.explain_page import write_explain_page

    log_to(None)
    place, sizes = _place(at), _sizes(px)
    opened = open_encoder(encoder, device=device, precision="fp32")
    asked = {"attention": attention, "rollout": rollout, "pca": pca}
    use = opened.config
    field = read_field(
        image, size_px=max(sizes), encoder_mpp=use.mpp, at=place, mpp=mpp, colour=use.colour
    )
    try:
        explanation = explain_field(
            opened, field, px=sizes, kinds=[kind for kind in KINDS if asked[kind]] or KINDS
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    print(f"{len(write_pictures(explanation, output))} pictures: {output}")
    page = write_explain_page(explanation, output / "explain.html", encoder=encoder)
    print(f"page: {page}")


def _place(at: str | None) -> tuple[int, int] | None:
    if at is None:
        return None
    place = _whole_numbers(at, "--at")
    if len(place) != 2:
        msg = f"--at needs two numbers X,Y; got {at!r}. Write it as --at 12000,8000."
        raise typer.BadParameter(msg)
    return place[0], place[1]


def _sizes(px: str) -> list[int]:
    sizes = _whole_numbers(px, "--px")
    if not all(1 <= size <= LARGEST_PX for size in sizes):
        msg = f"--px needs sizes from 1 to {LARGEST_PX}; got {px}. The largest usual is 1344."
        raise typer.BadParameter(msg)
    return sizes


def _whole_numbers(text: str, option: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        msg = f"{option} needs whole numbers with commas between; got {text!r}."
        raise typer.BadParameter(msg) from error
