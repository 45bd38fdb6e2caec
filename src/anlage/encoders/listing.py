"""What can be said of each encoder that has a name, of tiles or of slides, in a row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from anlage.encoders.bundled import BUNDLED, CONFIG
from anlage.encoders.hub import cached_file
from anlage.encoders.presets import PRESETS, Preset
from anlage.encoders.slide_presets import SLIDE_PRESETS, SlidePreset


def encoder_rows() -> Iterator[dict[str, Any]]:
    """Bundled, published, then slide encoders: plain values, the same keys in each row."""
    for name, folder in BUNDLED.items():
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        width = config["architecture"]["width"]
        yield {
            "name": name,
            "architecture": f"ViT, {width} wide",
            "takes": "tiles",
            "tile_px": config["tile_px"],
            "mpp": config["mpp"],
            "mpps": [config["mpp"]],
            "mean": config["mean"],
            "std": config["std"],
            "pooling": config["pooling"],
            "width": width * (2 if config["pooling"] == "cls+mean" else 1),
            "precision": "fp32",
            "licence": "Apache-2.0",
            "gated": False,
            "runs_on": "anlage",
            "verified": "made and tested here",
            "hub": None,
            "cached": str(folder),
        }
    for preset in PRESETS.values():
        yield preset_row(preset)
    for slide_preset in SLIDE_PRESETS.values():
        yield slide_preset_row(slide_preset)


def preset_row(preset: Preset) -> dict[str, Any]:
    """The row of a published encoder; ``cached`` is its weight file in the hub's cache, if any."""
    cached = cached_file(preset)
    return {
        "name": preset.name,
        "architecture": preset.label,
        "takes": "tiles",
        "tile_px": preset.tile_px,
        "mpp": round(preset.mpp, 4),
        "mpps": [round(mpp, 4) for mpp in preset.mpps],
        "mean": list(preset.mean),
        "std": list(preset.std),
        "pooling": preset.pooling,
        "width": preset.width,
        "precision": preset.precision,
        "licence": preset.licence,
        "gated": preset.gated,
        "runs_on": "anlage" if preset.remote is None else "its authors' code",
        "verified": preset.verified,
        "hub": preset.repo,
        "cached": None if cached is None else str(cached.path),
    }


def slide_preset_row(preset: SlidePreset) -> dict[str, Any]:
    """The row of a published slide encoder: tiles are those of the bags that it takes."""
    cached, tiles = cached_file(preset), preset.tile_encoder
    return {
        "name": preset.name,
        "architecture": preset.label,
        "takes": f"bags of {tiles.name}",
        "tile_px": tiles.tile_px,
        "mpp": tiles.mpp,
        "mpps": [tiles.mpp],
        "mean": None,
        "std": None,
        "pooling": preset.pooling,
        "width": preset.width,
        "precision": "fp16",
        "licence": preset.licence,
        "gated": preset.gated,
        "runs_on": "anlage",
        "verified": preset.verified,
        "hub": preset.repo,
        "cached": None if cached is None else str(cached.path),
    }


def markdown_table() -> str:
    """The published tile encoders as a table for the documentation."""
    head = "| name | architecture | input | mpp | pooling, width | licence | hub | verified |"
    lines = [head, "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for preset in PRESETS.values():
        trained = ", ".join(f"{mpp:.3g}" for mpp in preset.mpps) or "not said"
        cells = (
            f"`{preset.name}`",
            preset.label,
            f"{preset.tile_px} px",
            f"{preset.mpp:.3g} (trained: {trained})",
            f"{preset.pooling}, {preset.width:,}",
            preset.licence + ("; gated" if preset.gated else ""),
            preset.repo,
            preset.verified or "**unverified**",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
