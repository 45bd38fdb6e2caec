"""How the pretraining of the slide encoder went: masked error beside its floors, and the recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from anlage.report.contents import Contents
from anlage.report.line_chart import Chart, Value, line_chart, short_number
from anlage.report.slide_parts import SlideParts
from anlage.report.slide_provenance import called
from anlage.report.training_section import TrainingSection, machine_of, time_in_words
from anlage.training.slide_pretraining.config import SlidePretrainConfig
from anlage.training.slide_pretraining.held_out import COPY, LOSS, MEAN

FROM_ZERO = frozenset(("Learning rate", "Speed", "Waiting for bags", "RankMe"))
ERROR = (
    "Mean squared error of hidden tiles, standardised; below both floors it learned what holds on "
    "slides that it never saw."
)


def slide_training_section(contents: Contents) -> TrainingSection | None:
    """Curves and recipe of the run over slides; None without one."""
    parts = contents.over_slides
    if parts.run is None:
        return None
    try:
        config = SlidePretrainConfig.model_validate(parts.run["config"])
    except ValueError:  # the recipe of another version: its curves can be shown all the same
        config = None
    charts = _charts(parts.metrics, config) if parts.metrics else []
    return TrainingSection(
        charts=tuple(chart for chart in charts if chart is not None),
        facts=tuple(_facts(config, parts).items()) if config else (),
        summary=_summary(parts, config),
        read_errors=0,
    )


def slide_duration_s(parts: SlideParts) -> float | None:
    """Seconds of all steps together; None if they are not known."""
    rows = [(row.get("tiles"), row.get("tiles_per_s")) for row in parts.metrics]
    if not rows or not all(tiles and rate for tiles, rate in rows):
        return None
    return float(sum(tiles / rate for tiles, rate in rows if tiles and rate))


def held_out_errors(parts: SlideParts) -> tuple[float, float, float] | None:
    """The last error on held-out slides, that of their mean, and of copying; None without one."""
    looks = [row for row in parts.metrics if row.get(LOSS) is not None]
    if not looks:
        return None
    return looks[-1][LOSS], looks[-1][MEAN], looks[-1][COPY]


def _charts(
    metrics: Sequence[Mapping[str, Any]], config: SlidePretrainConfig | None
) -> list[Chart | None]:
    steps = [int(row["step"]) for row in metrics]
    looks = [row for row in metrics if row.get(LOSS) is not None]
    probes = [row for row in metrics if row.get("watch_knn") is not None]

    def of(key: str, rows: Sequence[Mapping[str, Any]] = metrics) -> list[Value]:
        return [row.get(key) for row in rows]

    held_out = line_chart(
        "Error on held-out slides",
        [int(row["step"]) for row in looks],
        {
            "slide encoder": of(LOSS, looks),
            "mean of the visible tiles": of(MEAN, looks),
            "nearest visible tile": of(COPY, looks),
        },
        note=ERROR,
        from_zero=True,
    )
    probed = line_chart(
        "Probes of slide embeddings",
        [int(row["step"]) for row in probes],
        {"kNN": of("watch_knn", probes), "linear": of("watch_linear", probes)},
        note="Balanced accuracy on labelled slides, split by patient.",
    )
    norms = {name: of(f"gradient_norm_{name}") for name in ("encoder", "decoder")}
    shares = [None if v is None else 100 * v for v in of("data_wait_share")]
    clip_norm = config.optimizer.clip_norm if config else None
    clip = {"reference": (clip_norm, "clipped above")} if clip_norm else {}
    warmup = {"note": "Linear warm-up, then a cosine."}
    rows: list[tuple[str, dict[str, list[Value]], dict[str, Any]]] = [
        ("Error in training", {"error": of("loss")}, {"note": "Of each step's hidden tiles."}),
        ("Gradient norm", norms, {"note": "Before clipping, of each network."} | clip),
        ("Learning rate", {"rate": of("lr")}, warmup),
        ("Speed", {"tiles per second": of("tiles_per_s")}, {"note": "Reading and training."}),
        ("Waiting for bags", {"% of the step": shares}, {"note": "Share of each step."}),
    ]
    others = [
        line_chart(title, steps, series, from_zero=title in FROM_ZERO, **settings)
        for title, series, settings in rows
    ]
    return [held_out, probed, *others]


def _summary(parts: SlideParts, config: SlidePretrainConfig | None) -> str:
    assert parts.run is not None
    if not parts.metrics:
        return "No step has been finished yet."
    n_bags = parts.run.get("n_slides", len(parts.run["slides"]))
    planned = config.steps(n_bags) if config else parts.n_steps
    of_planned = f" of {planned:,}" if planned != parts.n_steps else ""
    n_tiles = sum(row.get("tiles") or 0 for row in parts.metrics)
    seconds = slide_duration_s(parts)
    time = f", in {time_in_words(seconds)} of training" if seconds else ""
    steps = f"{parts.n_steps:,}{of_planned} step{'s' * (planned != 1)}"
    slides = "the bag of 1 slide" if n_bags == 1 else f"bags of {n_bags:,} slides"
    told = f"{steps} on {slides}, {n_tiles:,.0f} tiles"
    return f"{told}{time}.{_held_out_in_words(parts)}"


def _held_out_in_words(parts: SlideParts) -> str:
    errors = held_out_errors(parts)
    if errors is None or parts.run is None:
        return ""
    ours, mean, copy = (short_number(error) for error in errors)
    n_slides = len(parts.run.get("held_out", []))
    return (
        f" On {n_slides} held-out slides the error of hidden tiles is {ours}; the mean of the "
        f"visible tiles has {mean}, a copy of the nearest visible one {copy}."
    )


def _facts(config: SlidePretrainConfig, parts: SlideParts) -> dict[str, str]:
    assert parts.run is not None
    run, model, views, rates = parts.run, config.model, config.views, config.optimizer
    encoder = parts.encoder
    n = 0 if encoder is None else sum(p.numel() for p in encoder.network.parameters())
    branches = ", ".join(f"{s:,}" for s in model.segments)
    facts = {
        "Network": (
            f"LongNet, width {model.width}, depth {model.depth}, {model.n_heads} heads, segments "
            f"of {branches} tiles"
        ),
        "Parameters": f"{n / 1e6:.2f} million" if n else "",
        "Tile encoder": _tile_encoder(parts),
        "Grid": f"cells of {run['grid_um']:g} µm" if "grid_um" in run else "",
        "Hidden": f"{config.mask_ratio:.0%} of the tiles",
        "Views": (
            f"{views.crop:.3g} of each edge, moved on a grid of {views.n_grid:,} cells, mirrored"
        ),
        "Decoder": f"width {config.decoder.width}, depth {config.decoder.depth}",
        "Batch": f"{config.batch_size} slides, {config.epochs} epochs",
        "Optimiser": f"AdamW, peak rate {rates.peak_lr:g}, warm-up {rates.warmup_epochs:g} epochs",
        "Bags left out": _left_out(run),
        "Seed": str(config.seed),
        "Machine": machine_of(run),
    }
    return {name: value for name, value in facts.items() if value}


def _tile_encoder(parts: SlideParts) -> str:
    if parts.encoder is None:
        return ""
    made_for = parts.encoder.config.tile_encoder
    tile = f"{made_for.tile_px} px at {made_for.mpp:g} µm/px"
    return f"{called(made_for)}, {made_for.width} wide, {tile}"


def _left_out(run: Mapping[str, Any]) -> str:
    found = {
        "too small": run.get("n_too_small", 0),
        "refused or empty": len(run.get("left_out", [])),
    }
    return ", ".join(f"{n} {why}" for why, n in found.items() if n)
