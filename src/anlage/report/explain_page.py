"""One static page of what an encoder sees of a field: maps beside each other by size and head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from anlage import __version__
from anlage.explain.explanation import Explanation, Look
from anlage.explain.pictures import heat
from anlage.files import write_text_whole
from anlage.report.pictures import jpeg_uri, png_uri

TEMPLATE = "explain.html.jinja"
PICTURE_PX = 900
OPAQUE = 255


@dataclass(frozen=True, kw_only=True)
class MapPicture:
    """One map.

    Attributes:
        uri: Its data URI, one pixel a patch.
        n: Its edge in patches.
        note: What stands below it.
        alt: What it shows, in words.
    """

    uri: str
    n: int
    note: str
    alt: str


@dataclass(frozen=True, kw_only=True)
class MapRow:
    """The same map at each size.

    Attributes:
        name: Of the row, such as ``head 0``; empty where the section has one row.
        maps: One a size.
    """

    name: str
    maps: tuple[MapPicture, ...]


def write_explain_page(explanation: Explanation, page: Path, *, encoder: str) -> Path:
    """Write one HTML file that opens offline and fetches nothing.

    Args:
        explanation: What to show.
        page: The file.
        encoder: Name of the encoder.

    Returns:
        ``page``.
    """
    environment = Environment(
        loader=PackageLoader("anlage.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    field = explanation.field
    shown = field.pixels
    if len(shown) > PICTURE_PX:
        shown = np.asarray(
            cv2.resize(shown, (PICTURE_PX, PICTURE_PX), interpolation=cv2.INTER_AREA), np.uint8
        )
    text = environment.get_template(TEMPLATE).render(
        encoder=encoder,
        field=field,
        picture=jpeg_uri(shown),
        looks=explanation.looks,
        patch_px=explanation.patch_px,
        pca=_pca(explanation),
        explained=" + ".join(f"{share:.0%}" for share in explanation.explained),
        rollout=_rollout(explanation),
        heads=list(_heads(explanation)),
        version=__version__,
        written=datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
    )
    write_text_whole(page, text)
    return page


def _pca(explanation: Explanation) -> MapRow | None:
    maps = [
        _map(look.patch_rgb, note="", alt=f"Colours of the patches at {look.px} px.")
        for look in explanation.looks
        if look.patch_rgb is not None
    ]
    return MapRow(name="", maps=tuple(maps)) if maps else None


def _rollout(explanation: Explanation) -> MapRow | None:
    maps = [
        _map(
            heat(look.rollout),
            note=_told(look.rollout),
            alt=f"Attention rollout at {look.px} px.",
        )
        for look in explanation.looks
        if look.rollout is not None
    ]
    return MapRow(name="", maps=tuple(maps)) if maps else None


def _heads(explanation: Explanation) -> Iterator[MapRow]:
    looks = [(look, look.attention) for look in explanation.looks if look.attention is not None]
    n_heads = len(looks[0][1]) if looks else 0
    for head in range(n_heads):
        maps = [_of_head(look, share_Hhw[head], head) for look, share_Hhw in looks]
        yield MapRow(name=f"head {head}", maps=tuple(maps))


def _of_head(look: Look, share: NDArray[np.float32], head: int) -> MapPicture:
    return _map(heat(share), note=_told(share), alt=f"Attention of head {head} at {look.px} px.")


def _map(picture: NDArray[np.uint8], *, note: str, alt: str) -> MapPicture:
    rgba = np.dstack([picture, np.full(picture.shape[:2], OPAQUE, np.uint8)])
    return MapPicture(uri=png_uri(rgba), n=len(picture), note=note, alt=alt)


def _told(share: NDArray[np.float32]) -> str:
    """How much of the class token's attention the map holds, and its largest patch."""
    return f"{share.sum():.0%} on patches, at most {share.max():.2%} on one"
