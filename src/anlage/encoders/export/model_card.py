"""The model card of an export: what the encoder is, how it is used, what it learned from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from anlage import __version__
from anlage.encoders.encoder_sizes import EncoderSizes
from anlage.encoders.export.provenance_in_public import without_names
from anlage.encoders.export.written import Written, n_heads_of, sizes_of
from anlage.encoders.tile_encoder import TileEncoder

SIGNATURE = "Written by `anlage export`"
HUB_LICENCES = (
    *("apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0"),
    *("cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0"),
)
POOLING = {
    "cls": "the class token, after the last LayerNorm",
    "cls+mean": "the class token, then the mean of the patch tokens (no registers)",
}
FACTS = (
    ("data", "data"),
    ("recipe", "recipe"),
    ("n_slides", "slides"),
    ("n_patients", "patients"),
    ("tiles_seen", "tiles seen"),
    ("step", "training step"),
    ("preset", "preset"),
    ("repo", "published at"),
    ("revision", "revision"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """What a card says beside what the encoder itself tells.

    Attributes:
        title: Its heading.
        licence: Of the weights; None if nobody stated it.
        scores: Lines of an evaluation of this very encoder.
        own_card: Text of the README of the folder it was exported from.
    """

    title: str
    licence: str | None = None
    scores: Sequence[str] = ()
    own_card: str | None = None


def card_text(encoder: TileEncoder, written: Written, card: Card) -> str:
    """The README.md of an export, with the front matter that hubs read.

    Args:
        encoder: What was exported.
        written: How it is opened, and what was checked.
        card: What else is known.

    Returns:
        Markdown.
    """
    lines = [
        *_front_matter(written, card.licence),
        f"# {card.title}",
        "",
        "A tile encoder of pathology: a vision transformer that turns a tile of a slide into an "
        "embedding. For research; not for diagnosis.",
        "",
        "## Use",
        "",
        "```python",
        written.usage.rstrip(),
        "```",
        "",
        *(f"- {note}" for note in (*written.notes, written.checked)),
        "",
        "## Input and embedding",
        "",
        *_table(_input_rows(encoder)),
        "",
        "## Architecture",
        "",
        *_table(_architecture_rows(encoder, sizes_of(encoder))),
        "",
        "## What it learned from",
        "",
        *_trained_on(encoder.config.provenance),
        "",
        *_scores(card.scores),
        "## Licence and provenance",
        "",
        f"Licence of the weights: {card.licence or 'nobody stated one; ask before you use them'}.",
        "",
        *_provenance(encoder),
        *_own(card.own_card),
        f"{SIGNATURE}, version {__version__}.",
    ]
    return "\n".join(lines) + "\n"


def _front_matter(written: Written, licence: str | None) -> list[str]:
    known = (licence or "").lower()
    told: dict[str, Any] = {"license": known if known in HUB_LICENCES else "other"}
    if licence and known not in HUB_LICENCES:
        told["license_name"] = re.sub(r"[^a-z0-9.]+", "-", known).strip("-")
    if licence is None:
        told["license"] = "unknown"
    told |= {
        "library_name": written.library,
        "pipeline_tag": "image-feature-extraction",
        "tags": ["pathology", "histology", "vision-transformer", "anlage"],
    }
    return ["---", yaml.safe_dump(told, sort_keys=False).rstrip(), "---", ""]


def _input_rows(encoder: TileEncoder) -> Iterator[tuple[str, str]]:
    config = encoder.config
    yield "tile", f"{config.tile_px} x {config.tile_px} px, RGB"
    yield "resolution", f"{config.mpp:g} µm per pixel"
    is_stored = config.colour == "stored"
    yield "colours", "as stored in the slide" if is_stored else "sRGB by the slide's ICC profile"
    yield "mean, of pixels in 0 to 1", ", ".join(f"{value:g}" for value in config.mean)
    yield "standard deviation", ", ".join(f"{value:g}" for value in config.std)
    yield "embedding", f"{encoder.width} numbers: {POOLING[config.pooling]}"


def _architecture_rows(encoder: TileEncoder, sizes: EncoderSizes) -> Iterator[tuple[str, str]]:
    yield "patch", f"{sizes.patch_px} px"
    yield "width, depth", f"{sizes.width}, {sizes.depth}"
    yield "attention heads", str(n_heads_of(encoder))
    yield "register tokens", str(sizes.n_registers)
    kind = "SwiGLU" if sizes.feed_forward == "swiglu" else "GELU MLP"
    yield "feed-forward layer", f"{kind}, {sizes.hidden} wide"
    parts = {
        "LayerScale": sizes.has_layer_scale,
        "QK norm": sizes.has_qk_norm,
        "dual patch norm": sizes.has_dual_patch_norm,
    }
    yield "also", ", ".join(name for name, is_there in parts.items() if is_there) or "nothing else"
    yield "parameters", f"{encoder.n_parameters:,}"


def _trained_on(provenance: Mapping[str, Any]) -> list[str]:
    public = without_names(provenance)
    rows = [(name, str(public[key])) for key, name in FACTS if public.get(key) is not None]
    config = public.get("config")
    tiles = config.get("tiles") if isinstance(config, Mapping) else None
    shares = tiles.get("magnifications") if isinstance(tiles, Mapping) else None
    if isinstance(shares, Mapping):
        told = ", ".join(f"{mpp} ({share:.0%})" for mpp, share in shares.items())
        rows.append(("µm per pixel of tiles", told))
    return _table(rows) if rows else ["The encoder's folder does not say."]


def _scores(lines: Sequence[str]) -> list[str]:
    return ["## Scores", "", "```", *lines, "```", ""] if lines else []


def _provenance(encoder: TileEncoder) -> list[str]:
    provenance = encoder.config.provenance
    rows = [("encoder (SHA-256)", encoder.fingerprint)]
    for key, name in (("catalogue", "catalogue (SHA-256)"), ("commit", "commit of anlage")):
        if provenance.get(key):
            rows.append((name, str(provenance[key])))
    versions = provenance.get("versions")
    if isinstance(versions, Mapping):
        rows.append(("versions", ", ".join(f"{name} {value}" for name, value in versions.items())))
    return [*_table(rows), ""]


def _own(text: str | None) -> list[str]:
    """The card of the folder itself, its headings one step down and its front matter left out."""
    if not text:
        return []
    body = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    parts = re.split(r"(^```.*?^```)", body, flags=re.DOTALL | re.MULTILINE)
    parts[::2] = [re.sub(r"^(#+ )", r"##\1", part, flags=re.MULTILINE) for part in parts[::2]]
    body = "".join(parts)
    return ["## The card of the encoder's own folder", "", body.strip(), ""]


def _table(rows: Sequence[tuple[str, str]] | Iterator[tuple[str, str]]) -> list[str]:
    cells = (tuple(text.replace("|", r"\|") for text in row) for row in rows)
    return ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in cells)]
