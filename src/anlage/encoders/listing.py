"""What can be said of each encoder that has a name, in a row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from anlage.encoders.bundled import BUNDLED, CONFIG
from anlage.encoders.hub import cached_file
from anlage.encoders.presets import PRESETS, Preset


def encoder_rows() -> Iterator[dict[str, Any]]:
    """Bundled encoders, then published ones: plain values, the same keys in each row."""
    for name, folder in BUNDLED.items():
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        width = config["architecture"]["width"]
        yield {
            "name": name,
            "architecture": f"ViT, {width} wide",
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


def preset_row(preset: Preset) -> dict[str, Any]:
    """The row of a published encoder; ``cached`` is its weight file in the hub's cache, if any."""
    cached = cached_file(preset)
    return {
        "name": preset.name,
        "architecture": preset.label,
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


def markdown_table() -> str:
    """The published encoders as a table for the documentation."""
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
