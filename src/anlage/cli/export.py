"""The command that writes an encoder in another format, and uploads it."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from anlage.cli.application import app, local_output, log_to

if TYPE_CHECKING:
    from anlage.encoders.tile_encoder import TileEncoder


@app.command()
def export(
    encoder: Annotated[
        str, typer.Argument(help="Encoder folder, RUN (its RUN/encoder), or the name of one.")
    ],
    folder: Annotated[
        Path, typer.Argument(help="Folder to write, whole or not at all.", callback=local_output)
    ],
    to: Annotated[
        Literal["timm", "hf", "onnx", "safetensors"], typer.Option(help="Format to write.")
    ],
    licence: Annotated[
        str | None, typer.Option(help="Licence of the weights, such as apache-2.0, for the card.")
    ] = None,
    push: Annotated[
        str | None, typer.Option(help="Then upload it to OWNER/NAME on the hub, private.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Upload readable for all.")] = False,
) -> None:
    """Write an encoder for timm, transformers or onnxruntime, compared and with a model card."""
    from anlage.encoders.export.export_encoder import export_encoder, refuse_other_content
    from anlage.encoders.export.push import push_folder, refuse_push

    log_to(None)
    if public and push is None:
        msg = "--public needs --push OWNER/NAME."
        raise typer.BadParameter(msg)
    refuse_other_content(folder)
    place = _of_run(encoder)
    opened = _opened(place)
    if push is not None:
        provenance = opened.config.provenance
        licence = licence or provenance.get("licence")
        refuse_push(push, provenance, licence=licence, public=public)
    written = export_encoder(
        opened,
        folder,
        to=to,
        licence=licence,
        scores=_scores(encoder, opened),
        own_card=_own_card(place),
    )
    for line in (*written.notes, written.checked):
        print(line)
    print(f"export: {folder}")
    if push is not None:
        print(f"uploaded: {push_folder(folder, push, public=public)}")


def _of_run(named: str) -> str:
    """RUN/encoder for a run; the name itself otherwise."""
    inside = Path(named) / "encoder"
    is_run = (inside / "config.json").is_file() and not (Path(named) / "config.json").exists()
    return str(inside) if is_run else named


def _opened(named: str) -> TileEncoder:
    from anlage.encoders.open_encoder import open_encoder

    return open_encoder(named, precision="fp32")


def _own_card(named: str) -> str | None:
    from anlage.encoders.bundled import encoder_folder

    readme = encoder_folder(named) / "README.md"
    return readme.read_text(encoding="utf-8") if readme.is_file() else None


def _scores(named: str, encoder: TileEncoder) -> list[str]:
    """What evaluations in or beside the folder said of this very encoder, no case by name."""
    from anlage.evaluation.result import read_result

    folder = Path(named)
    places = (folder, folder / "scores", folder.parent, folder.parent / "scores")
    lines: list[str] = []
    for path in (place / "result.json" for place in places):
        result = read_result(path) if path.is_file() else None
        if result is not None and result.encoder_fingerprint == encoder.fingerprint:
            lines += takewhile(_names_no_case, result.summary())
    return lines


def _names_no_case(line: str) -> bool:
    return not line.startswith(("per case", "note:"))
